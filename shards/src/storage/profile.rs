//! What the AWS tools keep in `~/.aws/config` and `~/.aws/credentials`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::options::Environment;
use crate::error::{Error, Result};

/// A section's settings. `s3.addressing_style` is `addressing_style` in the indented lines below `s3 =`.
type Section = BTreeMap<String, String>;

/// The settings of one profile, those of the credentials file before those of the config file.
#[derive(Default)]
pub(super) struct Profile {
    /// Its name.
    pub name: String,
    settings: Section,
    /// Those of the section `[services NAME]` that it points to.
    services: Section,
}

impl Profile {
    /// The profile that `AWS_PROFILE` names, or else `default`, which may be empty.
    ///
    /// # Errors
    /// [`Error::Settings`] if a profile that is asked for is nowhere, or a file cannot be read or understood.
    pub fn read(environment: &Environment) -> Result<Self> {
        let asked = environment
            .get("AWS_PROFILE")
            .or_else(|| environment.get("AWS_DEFAULT_PROFILE"));
        let name = asked.unwrap_or("default");
        let file = |variable: &str, usual: &str| -> Option<PathBuf> {
            match environment.get(variable) {
                Some(path) => Some(with_home(path, environment)),
                None => Some(environment.home()?.join(".aws").join(usual)),
            }
        };
        let config = file("AWS_CONFIG_FILE", "config");
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let (config_text, credentials_text) = (read(config)?, read(credentials)?);
        let mut config = sections(&config_text)?;
        let mut credentials = sections(&credentials_text)?;
        // In the config file all names but the default one follow the word `profile`.
        let in_config = match name {
            "default" => config
                .remove("profile default")
                .or_else(|| config.remove("default")),
            _ => config.remove(&format!("profile {name}")),
        };
        let in_credentials = credentials.remove(name);
        if asked.is_some() && in_config.is_none() && in_credentials.is_none() {
            return Err(Error::Settings {
                reason: format!(
                    "AWS_PROFILE is {name:?}, and there is no such profile in {} or {}",
                    config_text.place(),
                    credentials_text.place()
                ),
            });
        }
        let mut settings = in_config.unwrap_or_default();
        settings.extend(in_credentials.unwrap_or_default());
        let services = settings
            .get("services")
            .and_then(|services| config.remove(&format!("services {services}")));
        Ok(Profile {
            name: name.to_owned(),
            settings,
            services: services.unwrap_or_default(),
        })
    }

    /// A setting that has a value.
    pub fn get(&self, key: &str) -> Option<&str> {
        let value = self.settings.get(key).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    /// The endpoint of S3, which may be set for this service alone.
    pub fn s3_endpoint(&self) -> Option<&str> {
        let service = self.services.get("s3.endpoint_url").map(String::as_str);
        service
            .filter(|value| !value.is_empty())
            .or_else(|| self.get("endpoint_url"))
    }
}

struct Text {
    path: Option<PathBuf>,
    text: String,
}

impl Text {
    fn place(&self) -> String {
        let shown = |path: &PathBuf| path.display().to_string();
        self.path.as_ref().map_or("no file".to_owned(), shown)
    }
}

/// A file that is not there is an empty one.
fn read(path: Option<PathBuf>) -> Result<Text> {
    let text = match path.as_deref().map(std::fs::read_to_string) {
        Some(Ok(text)) => text,
        None => String::new(),
        Some(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Some(Err(e)) => {
            let path = path.unwrap_or_default();
            return Err(Error::Settings {
                reason: format!("reading {}: {e}", path.display()),
            });
        }
    };
    Ok(Text { path, text })
}

/// Sections by name. Lines are never quoted in messages: they hold secrets.
fn sections(file: &Text) -> Result<BTreeMap<String, Section>> {
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let mut section: Option<String> = None;
    let mut parent: Option<String> = None;
    for (number, line) in file.text.lines().enumerate() {
        let fault = |expected: &str| Error::Settings {
            reason: format!("{}, line {}: expected {expected}", file.place(), number + 1),
        };
        let content = line.trim();
        if content.is_empty() || content.starts_with(['#', ';']) {
            continue;
        }
        if let Some(rest) = content.strip_prefix('[') {
            let (name, _) = rest.split_once(']').ok_or_else(|| fault("[a section]"))?;
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(name.clone()).or_default();
            section = Some(name);
            parent = None;
            continue;
        }
        let (key, value) = content
            .split_once('=')
            .ok_or_else(|| fault("a key = a value"))?;
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        // A comment needs a space before it: a secret may hold the sign itself.
        let value = [" #", " ;", "\t#", "\t;"]
            .iter()
            .filter_map(|sign| value.find(sign))
            .min()
            .map_or(value, |at| value[..at].trim_end());
        let key = match (&parent, line.starts_with([' ', '\t'])) {
            (Some(parent), true) => format!("{parent}.{key}"),
            _ => {
                parent = value.is_empty().then(|| key.clone());
                key
            }
        };
        let section = section.as_ref().ok_or_else(|| fault("[a section] first"))?;
        if let Some(settings) = sections.get_mut(section) {
            settings.insert(key, value.to_owned());
        }
    }
    Ok(sections)
}

fn with_home(path: &str, environment: &Environment) -> PathBuf {
    match (path.strip_prefix("~/"), environment.home()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => Path::new(path).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
# a comment
[default]
region = eu-west-1
[profile  far ]
region=ap-south-1   # there
endpoint_url = http://general:1
services = own
s3 =
  addressing_style = path
  max_concurrent_requests = 20
output = json
[services own]
s3 =
    endpoint_url = http://for-s3:2
ec2 =
    endpoint_url = http://other:3
";
    const CREDENTIALS: &str = "
[default]
aws_access_key_id = A
[far]
aws_access_key_id=B
AWS_SECRET_ACCESS_KEY = a/b=c#d+e
region = from-credentials
";

    fn environment(
        dir: &Path,
        config: &str,
        credentials: &str,
        more: &[(&str, &str)],
    ) -> Environment {
        let config_path = dir.join("config");
        std::fs::write(&config_path, config).unwrap();
        std::fs::create_dir_all(dir.join(".aws")).unwrap();
        std::fs::write(dir.join(".aws/credentials"), credentials).unwrap();
        let home = dir.to_str().unwrap();
        let variables = [("HOME", home), ("AWS_CONFIG_FILE", "~/config")];
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        variables.iter().chain(more).map(owned).collect()
    }

    #[test]
    fn a_profile_is_put_together_from_both_files() {
        let dir = tempfile::tempdir().unwrap();
        let environment =
            |more: &[(&str, &str)]| environment(dir.path(), CONFIG, CREDENTIALS, more);
        let default = Profile::read(&environment(&[])).unwrap();
        assert_eq!(default.name, "default");
        assert_eq!(default.get("region"), Some("eu-west-1"));
        assert_eq!(default.get("aws_access_key_id"), Some("A"));
        assert_eq!(default.s3_endpoint(), None);
        let far = Profile::read(&environment(&[("AWS_PROFILE", "far")])).unwrap();
        assert_eq!(far.get("region"), Some("from-credentials"));
        assert_eq!(far.get("aws_secret_access_key"), Some("a/b=c#d+e"));
        assert_eq!(far.get("s3.addressing_style"), Some("path"));
        assert_eq!(far.get("output"), Some("json"));
        assert_eq!(far.s3_endpoint(), Some("http://for-s3:2"));
    }

    #[test]
    fn what_is_not_there_is_empty_unless_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let home = |more: &[(&str, &str)]| environment(dir.path(), "", "", more);
        assert_eq!(Profile::read(&home(&[])).unwrap().get("region"), None);
        assert_eq!(
            Profile::read(&Environment::default()).unwrap().get("x"),
            None
        );
        let Err(error) = Profile::read(&home(&[("AWS_PROFILE", "nobody")])) else {
            panic!("a profile that is nowhere")
        };
        let message = error.to_string();
        assert!(
            message.contains("\"nobody\"") && message.contains("config"),
            "{message}"
        );
    }

    #[test]
    fn a_damaged_file_is_named_by_line_and_never_quoted() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "[default\nx=1",
            "[default]\nsecret",
            "secret = 1",
            "[a]\n= ",
        ] {
            let environment = environment(dir.path(), text, "", &[]);
            let Err(error) = Profile::read(&environment) else {
                assert_eq!(text, "[a]\n= ");
                continue;
            };
            let message = error.to_string();
            assert!(message.contains(", line "), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
