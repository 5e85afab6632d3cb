//! Scoring a list of videos one after the other: what fails is told apart, what is done is kept.

use std::path::{Path, PathBuf};

use pipeline::{OtherFormat, Stop};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::encoder::CheckpointId;
use super::results::{DataHash, DataId, Failed, RESULTS_FORMAT, Results, Versions};
use super::video::identify;
use crate::error::{Error, Result};

/// The scores of one video.
pub trait Scored: Clone {
    /// Its name.
    fn name(&self) -> &str;
    /// What was read.
    fn data(&self) -> &DataId;
}

/// The numbers of a `results.json` that are made of the scores of videos.
pub trait Scores: Serialize + DeserializeOwned {
    /// One video's.
    type Video: Scored;

    /// Of these videos.
    fn of(videos: Vec<Self::Video>) -> Self;

    /// The videos.
    fn videos(&self) -> &[Self::Video];

    /// What was read for them.
    fn data(&self) -> DataId {
        let mut hash = DataHash::default();
        for video in self.videos() {
            hash.part(video.name(), video.data());
        }
        hash.finish()
    }
}

/// Something to score, found or not, by name.
pub type Found<V> = Vec<(String, Result<V>)>;

/// A video with the files that it consists of.
pub trait Video {
    /// Frames and annotations.
    fn files(&self) -> Vec<&PathBuf>;
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum Event<'a, S> {
    /// A video begins: its name, its number from 0, and how many there are.
    Begins(&'a str, usize, usize),
    /// One more is scored, the last of these.
    Scored(&'a [S]),
    /// One could not be scored.
    Failed(&'a Failed),
}

/// Scores all videos. One that cannot be scored is told apart, and nothing else is lost.
///
/// * `root`: the data set's folder, which file names are relative to where data is identified.
/// * `known`: scores from before, which are taken over where the data is the same.
/// * `event`: told about progress; what it returns as an error ends the work.
///
/// # Errors
/// Only what `event` returns. A wish to stop ends the work early, without an error.
pub fn score_all<V: Video, S: Scored>(
    root: &Path,
    found: &Found<V>,
    known: &[S],
    stop: &Stop,
    mut score: impl FnMut(&V, DataId) -> Result<S>,
    mut event: impl FnMut(Event<S>) -> Result<()>,
) -> Result<(Vec<S>, Vec<Failed>)> {
    let (mut scored, mut failed) = (Vec::new(), Vec::new());
    for (i, (name, video)) in found.iter().enumerate() {
        if stop.is_requested() {
            break;
        }
        event(Event::Begins(name, i, found.len()))?;
        let result = match video {
            Err(error) => Err(error.to_string()),
            Ok(video) => {
                let result = identify(root, video.files()).and_then(|data| {
                    let same = |known: &&S| known.name() == name && *known.data() == data;
                    match known.iter().find(same) {
                        Some(known) => Ok(known.clone()),
                        None => score(video, data),
                    }
                });
                match result {
                    Err(Error::Stopped) => break,
                    result => result.map_err(|error| error.to_string()),
                }
            }
        };
        match result {
            Ok(scores) => {
                scored.push(scores);
                event(Event::Scored(&scored))?;
            }
            Err(why) => {
                let what = name.clone();
                let failure = Failed { what, why };
                event(Event::Failed(&failure))?;
                failed.push(failure);
            }
        }
    }
    Ok((scored, failed))
}

/// One evaluation of videos: what its `results.json` begins with.
#[derive(Debug)]
pub struct Job<'a, S> {
    /// `davis`, `vip` or `jhmdb`.
    pub protocol: &'static str,
    /// Everything that scores depend on beside weights and data.
    pub settings: S,
    /// The data set's folder.
    pub root: &'a Path,
    /// The weights.
    pub checkpoint: CheckpointId,
    /// What ran.
    pub versions: Versions,
    /// Whether scores of an earlier run may be taken over.
    pub keeps_scores: bool,
    /// Whether to stop.
    pub stop: &'a Stop,
}

impl<S: Serialize + DeserializeOwned + PartialEq> Job<'_, S> {
    /// Scores all videos into `path`, a `results.json`, which is there, whole, after each of them.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] and [`Error::Json`] naming that file.
    pub fn run<V: Video, N: Scores>(
        self,
        found: &Found<V>,
        path: &Path,
        score: impl FnMut(&V, DataId) -> Result<N::Video>,
        mut see: impl FnMut(&Event<N::Video>),
    ) -> Result<Results<S, N>> {
        let mut results = Results {
            format: RESULTS_FORMAT,
            protocol: self.protocol.to_owned(),
            complete: false,
            checkpoint: self.checkpoint,
            data: N::of(Vec::new()).data(),
            settings: self.settings,
            scores: N::of(Vec::new()),
            failed: Vec::new(),
            versions: self.versions,
        };
        let known = match self.keeps_scores {
            true => earlier(path, &results)?,
            false => Vec::new(),
        };
        let (videos, failed) = score_all(self.root, found, &known, self.stop, score, |event| {
            see(&event);
            if let Event::Scored(videos) = event {
                results.scores = N::of(videos.to_vec());
                results.data = results.scores.data();
                results.write(path)?;
            }
            Ok(())
        })?;
        results.complete = videos.len() == found.len();
        results.scores = N::of(videos);
        results.data = results.scores.data();
        results.failed = failed;
        results.write(path)?;
        Ok(results)
    }
}

/// Scores of an earlier run that was the same in everything that they depend on; none if there is no such run.
///
/// # Errors
/// [`Error::Format`]: what is there is not to be overwritten.
fn earlier<S, N>(path: &Path, now: &Results<S, N>) -> Result<Vec<N::Video>>
where
    S: DeserializeOwned + PartialEq,
    N: Scores,
{
    let text = std::fs::read(path).unwrap_or_default();
    OtherFormat::check_json(&text, RESULTS_FORMAT).map_err(Error::format(path))?;
    let before = serde_json::from_slice(&text)
        .ok()
        .filter(|before: &Results<S, N>| {
            before.protocol == now.protocol
                && before.checkpoint.weights_sha256 == now.checkpoint.weights_sha256
                && before.settings == now.settings
                && before.versions == now.versions
        })
        .map_or_else(Vec::new, |before| before.scores.videos().to_vec());
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Debug)]
    struct Score(String, DataId);

    impl Scored for Score {
        fn name(&self) -> &str {
            &self.0
        }

        fn data(&self) -> &DataId {
            &self.1
        }
    }

    struct OneFile(PathBuf);

    impl Video for OneFile {
        fn files(&self) -> Vec<&PathBuf> {
            vec![&self.0]
        }
    }

    #[test]
    fn what_fails_is_told_apart_and_what_is_known_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            OneFile(path)
        };
        let found: Found<OneFile> = vec![
            ("a".to_owned(), Ok(file("a"))),
            ("b".to_owned(), Err(Error::evaluation("b.png", "is broken"))),
            ("c".to_owned(), Ok(OneFile(dir.path().join("missing")))),
            ("d".to_owned(), Ok(file("d"))),
        ];
        let run = |known: &[Score], stop: &Stop, end_after: usize| {
            let mut made = Vec::new();
            let result = score_all(
                dir.path(),
                &found,
                known,
                stop,
                |video, data| {
                    let name = video.0.file_name().unwrap().to_string_lossy().into_owned();
                    made.push(name.clone());
                    if made.len() > end_after {
                        return Err(Error::Stopped);
                    }
                    Ok(Score(name, data))
                },
                |_| Ok(()),
            );
            (result.unwrap(), made)
        };
        let ((scored, failed), made) = run(&[], &Stop::new(), 9);
        assert_eq!(made, ["a", "d"]);
        assert_eq!(scored.len(), 2);
        let whys: Vec<&str> = failed.iter().map(|failure| failure.why.as_str()).collect();
        assert!(
            whys[0] == "b.png: is broken" && whys[1].contains("missing"),
            "{whys:?}"
        );

        let ((again, _), made) = run(&scored, &Stop::new(), 9);
        assert!(made.is_empty() && again == scored);
        std::fs::write(dir.path().join("d"), "changed").unwrap();
        let (_, made) = run(&scored, &Stop::new(), 9);
        assert_eq!(made, ["d"]);

        let ((kept, _), _) = run(&[], &Stop::new(), 1);
        assert_eq!(kept.len(), 1);
        let stop = Stop::new();
        stop.request();
        assert!(run(&[], &stop, 9).0.0.is_empty());
    }
}
