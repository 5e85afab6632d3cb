//! The published runs, as far as a configuration can depart from them.
//!
//! Sources: CropMAE, `train_cropmae_in1k.sh`, `train_cropmae_k400.sh`, `train_siammae_k400.sh` and their parser;
//! SiamMAE (Gupta et al., 2023), table 4a.

use pipeline::config::{Interpolation, Sampler, Strategy, ViewsKind};
use serde::{Deserialize, Serialize};

use super::TrainConfig;

/// A published run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Paper {
    /// CropMAE (Eymaël et al., 2024), as its scripts run it.
    Cropmae,
    /// SiamMAE (Gupta et al., 2023), as its paper says.
    Siammae,
    /// SiamMAE as CropMAE's repository runs it: a fifth of the epochs.
    SiammaeInCropmae,
}

/// A value of ours beside the published one; both as text.
struct Row {
    key: &'static str,
    ours: String,
    published: String,
}

fn row(key: &'static str, ours: impl ToString, published: impl ToString) -> Row {
    Row {
        key,
        ours: ours.to_string(),
        published: published.to_string(),
    }
}

fn debug_row<T: std::fmt::Debug>(key: &'static str, ours: T, published: T) -> Row {
    row(key, format!("{ours:?}"), format!("{published:?}"))
}

impl Paper {
    /// Where `config` departs from this run, one sentence each.
    pub(super) fn departures(self, config: &TrainConfig) -> Vec<String> {
        let rows = self.shared(config).into_iter().chain(self.own(config));
        let departing = rows.filter(|row| row.ours != row.published);
        departing
            .map(|row| format!("{} is {}, {self} has {}", row.key, row.ours, row.published))
            .collect()
    }

    /// What the three runs have in common.
    fn shared(self, config: &TrainConfig) -> Vec<Row> {
        let (optim, data, sizes) = (&config.optim, &config.data, config.model.sizes());
        vec![
            row("effective batch", config.effective_batch(), 2048),
            row("optim.weight_decay", optim.weight_decay, 0.05),
            debug_row("optim.betas", optim.betas, [0.9, 0.95]),
            row("optim.min_lr_ratio", optim.min_lr_ratio, 0),
            debug_row("optim.clip_norm", optim.clip_norm, None),
            row("data.size", data.size, 224),
            row("data.flip_p", data.flip_p, 0.5),
            debug_row(
                "data.interpolation",
                data.interpolation,
                Interpolation::Bilinear,
            ),
            debug_row("data.sampler", data.sampler, Sampler::Torchvision),
            row("model.norm_pix_loss", config.model.norm_pix_loss, true),
            row("model.decoder_embed_dim", sizes.decoder_embed_dim, 256),
            row("model.decoder_depth", sizes.decoder_depth, 4),
            row("model.decoder_num_heads", sizes.decoder_num_heads, 8),
            row("model.decoder_dropout", config.model.decoder_dropout, 0.1),
        ]
    }

    fn own(self, config: &TrainConfig) -> Vec<Row> {
        let (optim, data) = (&config.optim, &config.data);
        let mask_ratio = config.model.sizes().mask_ratio;
        let (base_lr, epochs, warmup_ratio, repeated) = match self {
            Paper::Cropmae | Paper::SiammaeInCropmae => (1e-4, 400, 0.05, 1),
            Paper::Siammae => (1.5e-4, 2000, 0.02, 2),
        };
        let mut rows = vec![
            row(
                "optim.base_lr",
                optim.lr.map_or(optim.base_lr, |lr| {
                    lr * 256.0 / config.effective_batch() as f64
                }),
                base_lr,
            ),
            match optim.max_steps {
                Some(steps) => row(
                    "length of the run",
                    format!("{steps} steps"),
                    format!("{epochs} epochs"),
                ),
                None => row("optim.epochs", optim.epochs, epochs),
            },
            row("optim.warmup_ratio", optim.warmup_ratio, warmup_ratio),
            row("data.repeated_sampling", data.repeated_sampling, repeated),
        ];
        if self == Paper::Cropmae {
            rows.push(debug_row("data.views", data.views, ViewsKind::CropPair));
            rows.push(debug_row(
                "data.strategy",
                data.strategy,
                Strategy::GlobalToLocal,
            ));
            rows.push(row("model.mask_ratio", mask_ratio, 0.985));
            rows.push(debug_row("data.local_area", data.local_area, [0.3, 0.6]));
            // Kinetics has its own range; the configuration alone does not say which set it is.
            if data.global_area != [0.5, 1.0] {
                rows.push(debug_row("data.global_area", data.global_area, [0.1, 1.0]));
            }
        } else {
            rows.push(debug_row("data.views", data.views, ViewsKind::FramePair));
            rows.push(row("model.mask_ratio", mask_ratio, 0.95));
            rows.push(debug_row(
                "frame gap",
                (data.min_gap, data.max_gap),
                (4, 48),
            ));
            rows.push(debug_row("data.frame_area", data.frame_area, [0.5, 1.0]));
        }
        rows
    }
}

impl std::fmt::Display for Paper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Paper::Cropmae => "CropMAE",
            Paper::Siammae => "SiamMAE",
            Paper::SiammaeInCropmae => "SiamMAE in CropMAE's repository",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cropmae() -> TrainConfig {
        let mut config = TrainConfig {
            paper: Some(Paper::Cropmae),
            ..TrainConfig::default()
        };
        config.data.batch_size = 2048;
        config
    }

    #[test]
    fn the_published_run_departs_in_nothing() {
        assert_eq!(cropmae().departures(), Vec::<String>::new());
        let mut siammae = TrainConfig {
            paper: Some(Paper::Siammae),
            ..cropmae()
        };
        siammae.data.views = ViewsKind::FramePair;
        siammae.data.repeated_sampling = 2;
        siammae.model.mask_ratio = Some(0.95);
        siammae.optim.epochs = 2000;
        siammae.optim.warmup_ratio = 0.02;
        siammae.optim.base_lr = 1.5e-4;
        assert_eq!(siammae.departures(), Vec::<String>::new());
    }

    #[test]
    fn a_departure_is_named_with_both_values() {
        let mut config = cropmae();
        config.data.batch_size = 256;
        config.optim.accum_steps = 4;
        config.model.mask_ratio = Some(0.9);
        assert_eq!(
            config.departures(),
            [
                "effective batch is 1024, CropMAE has 2048",
                "model.mask_ratio is 0.9, CropMAE has 0.985"
            ]
        );
        assert_eq!(
            TrainConfig::default().departures(),
            Vec::<String>::new(),
            "no paper named"
        );
    }
}
