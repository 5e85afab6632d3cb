//! What people write: configurations of runs and comparisons, `--set`, options of a conversion.

use std::str::FromStr;

use pipeline::convert::{Check, FrameRange, ImagenetOptions, KineticsOptions, MaxBad, Part};
use trainer::TrainConfig;
use trainer::compare::config::CompareConfig;

use super::Target;
use crate::made;
use crate::scratch;

pub(super) const TARGET: Target = Target {
    name: "config",
    run,
    seeds: || {
        let options = (ImagenetOptions::default(), KineticsOptions::default());
        let texts = [
            "[data]\npath = \"set\"\n\0data.size=96\0model.img_size=96",
            "paper = \"cropmae\"\n[data]\npath = \"set\"\nbatch_size = 64\nmax_bad = \"2%\"\n[model]\nkind = \"mae\"\nembed_dim = 64\n\0data.views=single\0optim.betas=[0.9, 0.999]",
            include_str!("../../../../configs/compare/laptop.toml"),
            include_str!("../../../../configs/train/cropmae_vits16_k400.toml"),
            "10..200\x001%\x003/8\x00full",
            &made(serde_json::to_string(&options.0)),
            &made(serde_json::to_string(&options.1)),
        ];
        texts.map(|text| text.as_bytes().to_vec()).to_vec()
    },
    rounds: 3000,
};

/// Texts with a zero between: the first is a file, the others are set over it.
fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let overrides: Vec<&str> = parts.collect();
    drop(train(file, &overrides));
    let path = scratch::file("hostile.toml", file.as_bytes());
    if let Ok(config) = CompareConfig::read(&path, &overrides) {
        drop(config.runs());
    }
    for text in text.split('\0') {
        drop((FrameRange::from_str(text), MaxBad::from_str(text)));
        drop((Part::from_str(text), Check::from_str(text)));
        if let Ok(options) = serde_json::from_str::<ImagenetOptions>(text) {
            drop(options.validate());
        }
        if let Ok(options) = serde_json::from_str::<KineticsOptions>(text) {
            drop(options.validate());
        }
    }
}

fn train(file: &str, overrides: &[&str]) -> trainer::Result<()> {
    let config = TrainConfig::from_toml_with_overrides(file, overrides)?.resolved()?;
    let again = TrainConfig::from_toml(&config.to_toml()?)?;
    assert_eq!(again, config, "a configuration that its own file changes");
    config.departures();
    let steps = config.optim.total_steps(1000)?;
    let schedule = config.optim.schedule(config.effective_batch(), 1000);
    for step in [0, steps / 2, steps] {
        assert!(schedule.at_epoch(step as f64 / 1000.0).is_finite());
        config
            .run
            .checkpoint_due(step, config.optim.accum_steps, 1000);
        config
            .run
            .is_milestone(step, config.optim.accum_steps, 1000);
    }
    Ok(())
}
