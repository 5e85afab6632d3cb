//! What is trained: the `[model]` table of a run's configuration.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::masking::n_kept;

/// Which method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// SiamMAE and CropMAE: a whole view helps to reconstruct a masked one.
    #[default]
    Siamese,
    /// MAE (He et al., 2022): one view reconstructs itself.
    Mae,
    /// Multi-View MAE (Ji, Han and Rhee, 2023): two masked views, reconstruction and a contrastive loss.
    MultiView,
}

/// Encoder sizes of the papers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderPreset {
    /// Width 192, depth 12, 3 heads, patches of 16.
    VitTi16,
    /// Width 384, depth 12, 6 heads, patches of 16: CropMAE's and SiamMAE's main model.
    #[default]
    VitS16,
    /// Width 768, depth 12, 12 heads, patches of 16: MAE's and Multi-View MAE's main model.
    VitB16,
    /// Width 1024, depth 24, 16 heads, patches of 16.
    VitL16,
    /// Width 1280, depth 32, 16 heads, patches of 14.
    VitH14,
}

impl EncoderPreset {
    /// `(embed_dim, depth, num_heads, patch_size)`.
    pub fn sizes(self) -> (usize, usize, usize, usize) {
        match self {
            EncoderPreset::VitTi16 => (192, 12, 3, 16),
            EncoderPreset::VitS16 => (384, 12, 6, 16),
            EncoderPreset::VitB16 => (768, 12, 12, 16),
            EncoderPreset::VitL16 => (1024, 24, 16, 16),
            EncoderPreset::VitH14 => (1280, 32, 16, 14),
        }
    }
}

/// What each branch of Multi-View MAE reconstructs. The paper's ablation removes its "two different targets" (-1.23);
/// how they are made could not be read, so all readings are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Targets {
    /// Each branch its own crop: two different targets.
    #[default]
    Own,
    /// Both branches see view 0, under different masks, and share it as their target: the ablation.
    Shared,
    /// Each branch the other branch's crop, at the places that were removed from its own.
    Cross,
}

/// What of the encoder's output the contrastive loss compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The class token.
    #[default]
    Cls,
    /// The mean of the kept patches' tokens.
    Mean,
}

/// The contrastive part of Multi-View MAE (`[model.contrastive]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContrastiveConfig {
    /// Factor of the contrastive loss; 2.0 was the best of the paper's table. 0 leaves the projector out altogether.
    pub weight: f64,
    /// Temperature of InfoNCE. Not in the paper's abstract or tables; 0.2 as MoCo v3.
    pub temperature: f64,
    /// What is compared.
    pub pool: Pool,
    /// Hidden width of the two-layer projector, with batch normalisation and ReLU between; 4096 as MoCo v3.
    pub projector_hidden_dim: usize,
    /// Output width of the projector; 256 as MoCo v3.
    pub projector_dim: usize,
    /// Whether a predictor of the same form follows the projector on the query side, whose keys then take no gradient,
    /// as in MoCo v3.
    pub predictor: bool,
    /// Where the keys come from a momentum branch (encoder and projector once more, which take no gradient but follow
    /// the trained ones after each step): the share of themselves that they keep; MoCo v3: 0.99. None if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Whether `momentum` rises to 1 over the run along a half-cosine, as in MoCo v3 with vision transformers.
    pub momentum_rises: bool,
}

impl ContrastiveConfig {
    /// What the momentum branch keeps of itself after a step that leaves `progress` (0 to 1) of the run done.
    ///
    /// Source: MoCo v3, `main_moco.py`, `adjust_moco_momentum`.
    pub fn momentum_at(&self, progress: f64) -> Option<f64> {
        let falling = (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0;
        match self.momentum_rises {
            true => self.momentum.map(|start| 1.0 - (1.0 - start) * falling),
            false => self.momentum,
        }
    }
}

impl Default for ContrastiveConfig {
    fn default() -> Self {
        ContrastiveConfig {
            weight: 2.0,
            temperature: 0.2,
            pool: Pool::Cls,
            projector_hidden_dim: 4096,
            projector_dim: 256,
            predictor: false,
            momentum: None,
            momentum_rises: false,
        }
    }
}

/// The `[model]` table. Sizes left out come from the preset and from the method; [`ModelConfig::resolved`] fills them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// The method.
    pub kind: ModelKind,
    /// Encoder sizes.
    pub encoder: EncoderPreset,
    /// Side of a view in pixels; `data.size` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub img_size: Option<usize>,
    /// Side of a patch in pixels; the preset's if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_size: Option<usize>,
    /// Width of the encoder; the preset's if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embed_dim: Option<usize>,
    /// Blocks of the encoder; the preset's if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Attention heads of the encoder; the preset's if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_heads: Option<usize>,
    /// Width of the decoder; if left out 256 (siamese) or 512 (the others).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_embed_dim: Option<usize>,
    /// Blocks of the decoder; if left out 4 (siamese) or 8 (the others).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_depth: Option<usize>,
    /// Attention heads of the decoder; if left out 8 (siamese) or 16 (the others).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_num_heads: Option<usize>,
    /// Share of patches removed; if left out 0.985 (siamese; SiamMAE uses 0.95), 0.75 (MAE) or 0.8 (Multi-View MAE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_ratio: Option<f64>,
    /// Whether targets are normalised patch by patch, as in every published script.
    pub norm_pix_loss: bool,
    /// Dropout of the siamese decoder; 0.1 in the reference. The other decoders have none.
    pub decoder_dropout: f64,
    /// Largest probability of dropping a residual branch of the encoder, rising linearly from 0 at the first block;
    /// 0 in all papers' pre-training.
    pub drop_path: f64,
    /// Whether the backward pass computes every block again instead of keeping what it computed: the same bits, a
    /// fraction of the memory, about a third more time.
    pub checkpoint_blocks: bool,
    /// What Multi-View MAE reconstructs; the others have no choice.
    pub targets: Targets,
    /// Factor of Multi-View MAE's reconstruction loss, 1. With 0 there is no decoder, and the contrastive loss trains the
    /// encoder alone; the others have nothing else.
    pub reconstruction_weight: f64,
    /// The contrastive part of Multi-View MAE; unused by the others.
    pub contrastive: ContrastiveConfig,
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig {
            kind: ModelKind::default(),
            encoder: EncoderPreset::default(),
            img_size: None,
            patch_size: None,
            embed_dim: None,
            depth: None,
            num_heads: None,
            decoder_embed_dim: None,
            decoder_depth: None,
            decoder_num_heads: None,
            mask_ratio: None,
            norm_pix_loss: true,
            decoder_dropout: 0.1,
            drop_path: 0.0,
            checkpoint_blocks: false,
            targets: Targets::default(),
            reconstruction_weight: 1.0,
            contrastive: ContrastiveConfig::default(),
        }
    }
}

/// All sizes of a model, nothing left open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// Side of a view in pixels.
    pub img_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of the encoder.
    pub embed_dim: usize,
    /// Blocks of the encoder.
    pub depth: usize,
    /// Heads of the encoder.
    pub num_heads: usize,
    /// Width of the decoder.
    pub decoder_embed_dim: usize,
    /// Blocks of the decoder.
    pub decoder_depth: usize,
    /// Heads of the decoder.
    pub decoder_num_heads: usize,
    /// Share of patches removed.
    pub mask_ratio: f64,
}

impl Sizes {
    /// Patches along a side.
    pub fn grid(&self) -> usize {
        self.img_size / self.patch_size
    }

    /// N.
    pub fn n_patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// P, values of a patch.
    pub fn patch_values(&self) -> usize {
        self.patch_size * self.patch_size * crate::nn::patch_embed::CHANNELS
    }
}

/// Wider than any published vision transformer (ViT-22B has 6144); what is beyond it is a slip, and would only end in
/// memory that cannot be had.
const MAX_WIDTH: usize = 16_384;

/// Deeper than any published vision transformer.
const MAX_DEPTH: usize = 512;

/// Weights of a block, in units of the width's square: four of attention, eight of the MLP.
const VALUES_OF_BLOCK: usize = 12;

/// More weights than the largest encoder with a published masked pre-training has (EVA and ViT-G: 1.0 and 1.8 x 10^9). With
/// AdamW each takes 16 bytes.
const MAX_VALUES: usize = 1 << 32;

/// Side of a view where neither the model nor the data says one.
const DEFAULT_IMG_SIZE: usize = 224;

impl ModelConfig {
    /// Views that [`super::Pretrain::forward`] expects.
    pub fn n_views(&self) -> usize {
        match self.kind {
            ModelKind::Mae => 1,
            ModelKind::Siamese | ModelKind::MultiView => 2,
        }
    }

    /// The sizes with everything filled in that was left out.
    pub fn sizes(&self) -> Sizes {
        let (embed_dim, depth, num_heads, patch_size) = self.encoder.sizes();
        let (decoder_embed_dim, decoder_depth, decoder_num_heads, mask_ratio) = match self.kind {
            ModelKind::Siamese => (256, 4, 8, 0.985),
            ModelKind::Mae => (512, 8, 16, 0.75),
            ModelKind::MultiView => (512, 8, 16, 0.8),
        };
        Sizes {
            img_size: self.img_size.unwrap_or(DEFAULT_IMG_SIZE),
            patch_size: self.patch_size.unwrap_or(patch_size),
            embed_dim: self.embed_dim.unwrap_or(embed_dim),
            depth: self.depth.unwrap_or(depth),
            num_heads: self.num_heads.unwrap_or(num_heads),
            decoder_embed_dim: self.decoder_embed_dim.unwrap_or(decoder_embed_dim),
            decoder_depth: self.decoder_depth.unwrap_or(decoder_depth),
            decoder_num_heads: self.decoder_num_heads.unwrap_or(decoder_num_heads),
            mask_ratio: self.mask_ratio.unwrap_or(mask_ratio),
        }
    }

    /// The same model with every size written out, `img_size` being `data_size` if left out; idempotent.
    ///
    /// # Errors
    /// As [`ModelConfig::validate`], and if `img_size` differs from `data_size`.
    pub fn resolved(&self, data_size: usize) -> Result<ModelConfig> {
        let img_size = self.img_size.unwrap_or(data_size);
        if img_size != data_size {
            return Err(Error::Config(format!(
                "model.img_size is {img_size}, expected data.size, which is {data_size}"
            )));
        }
        let sizes = ModelConfig {
            img_size: Some(img_size),
            ..self.clone()
        }
        .sizes();
        let resolved = ModelConfig {
            img_size: Some(sizes.img_size),
            patch_size: Some(sizes.patch_size),
            embed_dim: Some(sizes.embed_dim),
            depth: Some(sizes.depth),
            num_heads: Some(sizes.num_heads),
            decoder_embed_dim: Some(sizes.decoder_embed_dim),
            decoder_depth: Some(sizes.decoder_depth),
            decoder_num_heads: Some(sizes.decoder_num_heads),
            mask_ratio: Some(sizes.mask_ratio),
            ..self.clone()
        };
        resolved.validate()?;
        Ok(resolved)
    }

    /// Checks everything that can be checked before anything is built.
    ///
    /// # Errors
    /// [`Error::Config`] naming the value and what was expected; [`Error::NothingKept`].
    pub fn validate(&self) -> Result<()> {
        let sizes = self.sizes();
        let expect = |ok: bool, message: String| {
            if ok {
                Ok(())
            } else {
                Err(Error::Config(message))
            }
        };
        expect(
            sizes.patch_size > 0
                && sizes.img_size > 0
                && sizes.img_size.is_multiple_of(sizes.patch_size),
            format!(
                "model.img_size (data.size) is {}, expected a multiple of patch_size, {}",
                sizes.img_size, sizes.patch_size
            ),
        )?;
        for (part, dim, heads) in [
            ("", sizes.embed_dim, sizes.num_heads),
            ("decoder_", sizes.decoder_embed_dim, sizes.decoder_num_heads),
        ] {
            expect(
                dim > 0 && heads > 0 && dim.is_multiple_of(heads) && dim.is_multiple_of(4),
                format!(
                    "model.{part}embed_dim is {dim}, expected a multiple of 4 and of {part}num_heads, {heads}"
                ),
            )?;
        }
        for (name, size, most) in [
            ("img_size", sizes.img_size, 8192),
            ("embed_dim", sizes.embed_dim, MAX_WIDTH),
            ("decoder_embed_dim", sizes.decoder_embed_dim, MAX_WIDTH),
            ("depth", sizes.depth, MAX_DEPTH),
            ("decoder_depth", sizes.decoder_depth, MAX_DEPTH),
        ] {
            expect(
                (1..=most).contains(&size),
                format!("model.{name} is {size}, expected 1 to {most}"),
            )?;
        }
        for (part, width, depth) in [
            ("", sizes.embed_dim, sizes.depth),
            ("decoder_", sizes.decoder_embed_dim, sizes.decoder_depth),
        ] {
            let values = VALUES_OF_BLOCK * width * width * depth; // both are small by now
            expect(
                values <= MAX_VALUES,
                format!(
                    "model.{part}embed_dim is {width} and model.{part}depth {depth}, which make {values} weights, expected \
                     at most {MAX_VALUES}"
                ),
            )?;
        }
        let weight = self.reconstruction_weight;
        expect(
            weight >= 0.0 && weight.is_finite(),
            format!("model.reconstruction_weight is {weight}, expected at least 0"),
        )?;
        expect(
            weight == 1.0 || self.kind == ModelKind::MultiView,
            format!(
                "model.reconstruction_weight is {weight}, expected 1 for model.kind {:?}, which has no other loss",
                self.kind
            ),
        )?;
        expect(
            weight > 0.0 || self.contrastive.weight > 0.0,
            "model.reconstruction_weight and model.contrastive.weight are 0, expected one of them to be more: \
             nothing would be learned"
                .to_owned(),
        )?;
        expect(
            weight > 0.0 || self.targets == Targets::Own,
            format!(
                "model.targets is {:?}, expected Own where model.reconstruction_weight is 0: nothing is a target",
                self.targets
            ),
        )?;
        let kept = n_kept(sizes.n_patches(), sizes.mask_ratio)?;
        expect(
            kept < sizes.n_patches() || weight == 0.0,
            format!(
                "model.mask_ratio is {}, expected one that removes at least one patch",
                sizes.mask_ratio
            ),
        )?;
        for (name, p) in [
            ("decoder_dropout", self.decoder_dropout),
            ("drop_path", self.drop_path),
        ] {
            expect(
                (0.0..1.0).contains(&p),
                format!("model.{name} is {p}, expected 0 <= {name} < 1"),
            )?;
        }
        let contrastive = &self.contrastive;
        expect(
            contrastive.weight >= 0.0 && contrastive.weight.is_finite(),
            format!(
                "model.contrastive.weight is {}, expected at least 0",
                contrastive.weight
            ),
        )?;
        expect(
            contrastive.temperature > 0.0 && contrastive.temperature.is_finite(),
            format!(
                "model.contrastive.temperature is {}, expected more than 0",
                contrastive.temperature
            ),
        )?;
        if let Some(momentum) = contrastive.momentum {
            expect(
                (0.0..1.0).contains(&momentum),
                format!("model.contrastive.momentum is {momentum}, expected 0 <= momentum < 1"),
            )?;
        }
        expect(
            contrastive.momentum.is_some() || !contrastive.momentum_rises,
            "model.contrastive.momentum_rises is true, expected a value of momentum to rise from"
                .to_owned(),
        )?;
        expect(
            contrastive.projector_hidden_dim > 0 && contrastive.projector_dim > 0,
            "model.contrastive.projector_hidden_dim and projector_dim must be more than 0"
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_method() {
        let sizes = ModelConfig::default().sizes();
        assert_eq!(
            (sizes.embed_dim, sizes.decoder_embed_dim, sizes.n_patches()),
            (384, 256, 196)
        );
        let mae = ModelConfig {
            kind: ModelKind::Mae,
            encoder: EncoderPreset::VitH14,
            ..Default::default()
        };
        let sizes = mae.sizes();
        assert_eq!(
            (sizes.patch_size, sizes.n_patches(), sizes.decoder_embed_dim),
            (14, 256, 512)
        );
        assert_eq!(sizes.mask_ratio, 0.75);
    }

    #[test]
    fn resolving_is_idempotent_and_round_trips() {
        let config: ModelConfig =
            toml::from_str("kind = \"multi_view\"\nencoder = \"vit_b16\"").unwrap();
        let resolved = config.resolved(224).unwrap();
        assert_eq!(resolved.mask_ratio, Some(0.8));
        assert_eq!(resolved.resolved(224).unwrap(), resolved);
        let text = toml::to_string(&resolved).unwrap();
        assert_eq!(toml::from_str::<ModelConfig>(&text).unwrap(), resolved);
        assert!(matches!(resolved.resolved(96), Err(Error::Config(_))));
    }

    #[test]
    fn impossible_models_are_errors() {
        let wrong = |toml: &str| {
            toml::from_str::<ModelConfig>(toml)
                .unwrap()
                .validate()
                .unwrap_err()
                .to_string()
        };
        assert!(wrong("img_size = 100").contains("multiple of patch_size"));
        assert!(wrong("num_heads = 5").contains("num_heads, 5"));
        assert!(wrong("decoder_num_heads = 3").contains("decoder_"));
        assert!(
            wrong("img_size = 64").contains("keeps none of 16"),
            "0.985 of 16 patches keeps none"
        );
        assert!(wrong("mask_ratio = 0.0").contains("removes at least one"));
        assert!(wrong("decoder_dropout = 1.0").contains("decoder_dropout"));
        assert!(wrong("[contrastive]\ntemperature = 0.0").contains("temperature"));
        let multi_view = |toml: &str| wrong(&format!("kind = \"multi_view\"\n{toml}"));
        assert!(wrong("reconstruction_weight = 0.0").contains("no other loss"));
        assert!(multi_view("reconstruction_weight = -1.0").contains("at least 0"));
        assert!(
            multi_view("reconstruction_weight = 0.0\n[contrastive]\nweight = 0.0")
                .contains("nothing would be learned")
        );
        assert!(
            multi_view("reconstruction_weight = 0.0\ntargets = \"cross\"")
                .contains("targets is Cross")
        );
        assert!(multi_view("mask_ratio = 0.0").contains("removes at least one"));
        assert!(multi_view("[contrastive]\nmomentum = 1.0").contains("momentum is 1"));
        assert!(multi_view("[contrastive]\nmomentum_rises = true").contains("rise from"));
        assert!(toml::from_str::<ModelConfig>("decoder_width = 5").is_err());
    }

    #[test]
    fn momentum_stays_or_rises_to_one() {
        let mut config = ContrastiveConfig::default();
        assert_eq!(config.momentum_at(0.5), None);
        config.momentum = Some(0.99);
        assert_eq!(config.momentum_at(0.5), Some(0.99));
        config.momentum_rises = true;
        for (progress, expected) in [(0.0, 0.99), (0.5, 0.995), (1.0, 1.0)] {
            let got = config.momentum_at(progress).unwrap();
            assert!((got - expected).abs() < 1e-15, "{progress}: {got}");
        }
    }
}
