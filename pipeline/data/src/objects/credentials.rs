//! Where the right to read from a bucket comes from, and what is said when it comes from nowhere.
//!
//! `object_store` reads the environment and asks the machine for its role; what stands in AWS's files is read here. A
//! machine that has no role does not answer that question, so it is not asked without looking whether somebody is there.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Looks up an environment variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// How long whoever tells the machine's role may take to accept a connection: it is on the same machine.
const NEAR: Duration = Duration::from_secs(1);

/// What a profile of AWS's files says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Access key, secret key, and the token of a session.
    pub keys: Option<(String, String, Option<String>)>,
    /// The region.
    pub region: Option<String>,
    /// Where requests go, if not to AWS.
    pub endpoint: Option<String>,
}

/// Keys of a profile that stand for ways to get credentials which are not gone here.
const OTHER_WAYS: [&str; 4] = ["sso_session", "sso_start_url", "credential_process", "role_arn"];

/// The profile of AWS's files that the environment names; empty if the environment itself holds the credentials, or the
/// way to them.
///
/// # Errors
/// If there are no credentials: where they were looked for.
pub fn aws(environment: Environment<'_>) -> Result<Profile, String> {
    let is_set = |name: &&str| environment(name).is_some_and(|value| !value.is_empty());
    let home = environment("HOME").map(PathBuf::from).unwrap_or_default();
    let file = |name: &str, usual: &str| environment(name).map_or_else(|| home.join(usual), PathBuf::from);
    let credentials = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
    let config = file("AWS_CONFIG_FILE", ".aws/config");
    let named = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"].iter().find_map(|name| Some((*name, environment(name)?)));
    let name = named.as_ref().map_or("default", |(_, name)| name.as_str());
    let in_config = if name == "default" { name.to_owned() } else { format!("profile {name}") };
    let tables = [(&credentials, name), (&config, in_config.as_str())];
    let found = tables.map(|(path, table)| std::fs::read_to_string(path).ok().map(|text| section(&text, table)));
    let value = |key: &str| found.iter().flatten().flatten().find_map(|values| values.get(key).cloned());
    let keys = match (value("aws_access_key_id"), value("aws_secret_access_key")) {
        (Some(id), Some(secret)) => Some((id, secret, value("aws_session_token"))),
        _ => None,
    };
    let profile = Profile { keys, region: value("region"), endpoint: value("endpoint_url") };
    if ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].iter().all(is_set) {
        return Ok(Profile { keys: None, ..profile });
    }
    let skips = environment("AWS_SKIP_SIGNATURE")
        .is_some_and(|value| ["true", "1", "yes", "on"].contains(&value.to_lowercase().as_str()));
    let ways = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_METADATA_ENDPOINT",
    ];
    if profile.keys.is_some() || skips {
        return Ok(profile);
    }
    let shown = [&credentials, &config].map(|path| path.display().to_string());
    if let Some(way) = OTHER_WAYS.iter().find(|key| value(key).is_some()) {
        return Err(format!(
            "no credentials: profile {name:?} of {} gets them by {way}, which is not supported; \
             `aws configure export-credentials --profile {name} --format env` prints variables that are read",
            shown.join(" and ")
        ));
    }
    if let Some((variable, name)) = &named
        && found.iter().flatten().all(Option::is_none)
    {
        return Err(format!("no credentials: {variable} = {name:?}, and no such profile is in {}", shown.join(" or ")));
    }
    if ways.iter().any(is_set) {
        return Ok(profile);
    }
    let role = match environment("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        true => "the machine's role is not to be asked for (AWS_EC2_METADATA_DISABLED)".to_owned(),
        false => match answers("169.254.169.254:80") {
            Ok(()) => return Ok(profile),
            Err(why) => why,
        },
    };
    let files =
        [(&shown[0], &found[0], name), (&shown[1], &found[1], in_config.as_str())].map(|(path, found, table)| {
            match found {
                None => format!("{path} can't be read"),
                Some(None) => format!("{path} has no [{table}]"),
                Some(Some(_)) => format!("[{table}] of {path} has no aws_access_key_id and aws_secret_access_key"),
            }
        });
    Err(format!(
        "no credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set; {}; {role}; \
         AWS_SKIP_SIGNATURE=true reads public buckets without",
        files.join("; ")
    ))
}

/// Looks whether there is a way to credentials for Google's buckets.
///
/// # Errors
/// If there is none: where they were looked for.
pub fn google(environment: Environment<'_>) -> Result<(), String> {
    let variables = [
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SKIP_SIGNATURE",
        "SERVICE_ACCOUNT",
    ];
    let file = environment("HOME").map(PathBuf::from).unwrap_or_default();
    let file = file.join(".config/gcloud/application_default_credentials.json");
    if variables.iter().any(|name| environment(name).is_some()) || file.exists() {
        return Ok(());
    }
    answers("metadata.google.internal:80").map_err(|role| without(&variables, Some(&file), &role))
}

/// Looks whether there is a way to credentials for Azure's containers.
///
/// # Errors
/// If there is none: where they were looked for.
pub fn azure(environment: Environment<'_>) -> Result<(), String> {
    let variables = [
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_TOKEN",
        "AZURE_STORAGE_CLIENT_SECRET",
        "AZURE_CLIENT_SECRET",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_USE_AZURE_CLI",
        "AZURE_SKIP_SIGNATURE",
        "AZURE_STORAGE_USE_EMULATOR",
        "IDENTITY_ENDPOINT",
        "MSI_ENDPOINT",
    ];
    if variables.iter().any(|name| environment(name).is_some()) {
        return Ok(());
    }
    answers("169.254.169.254:80").map_err(|role| without(&variables, None, &role))
}

fn without(variables: &[&str], file: Option<&Path>, role: &str) -> String {
    let file = file.map_or(String::new(), |file| format!("{} is not there; ", file.display()));
    format!("no credentials: none of {} is set; {file}{role}", variables.join(", "))
}

/// Whether whoever tells the machine's role is there.
fn answers(address: &str) -> Result<(), String> {
    let unknown = |why: std::io::Error| format!("nobody at {address} tells this machine's role ({why})");
    let all = address.to_socket_addrs().map_err(unknown)?;
    let mut last = std::io::Error::other("no address");
    for address in all {
        match std::net::TcpStream::connect_timeout(&address, NEAR) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(unknown(last))
}

/// The values of a section of an INI file; `None` if there is no such section.
fn section(text: &str, name: &str) -> Option<BTreeMap<String, String>> {
    let mut values = None;
    let mut inside = false;
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(title) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            inside = title.split_whitespace().eq(name.split_whitespace());
            if inside {
                values.get_or_insert_with(BTreeMap::new);
            }
        } else if inside
            && let Some((key, value)) = line.split_once('=')
            && let Some(values) = &mut values
        {
            values.insert(key.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "[default]\naws_access_key_id = one\naws_secret_access_key = 1\n\n# other\n[lab]\naws_access_key_id=two\naws_secret_access_key=2\naws_session_token=t=\n[half]\naws_access_key_id=x\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\n[profile lab]\nregion=us-east-2\nendpoint_url = http://localhost:9000\n[profile sso]\nsso_session = work\n";

    fn found(folder: &Path, variables: &[(&str, &str)]) -> Result<Profile, String> {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        let home = folder.display().to_string();
        aws(&|name| match name {
            "HOME" => Some(home.clone()),
            // No test asks the machine that it runs on for its role.
            "AWS_EC2_METADATA_DISABLED" => Some("true".into()),
            _ => variables.get(name).map(|value| (*value).to_owned()),
        })
    }

    #[test]
    fn the_files_of_aws_are_read_and_the_environment_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".aws")).unwrap();
        std::fs::write(folder.path().join(".aws/credentials"), CREDENTIALS).unwrap();
        std::fs::write(folder.path().join(".aws/config"), CONFIG).unwrap();
        let of = |variables: &[(&str, &str)]| found(folder.path(), variables).unwrap();
        let keys =
            |id: &str, secret: &str, token: Option<&str>| Some((id.into(), secret.into(), token.map(Into::into)));
        let plain = of(&[]);
        assert_eq!((plain.keys, plain.region.as_deref()), (keys("one", "1", None), Some("eu-west-1")));
        let lab = of(&[("AWS_PROFILE", "lab")]);
        assert_eq!((lab.keys, lab.region.as_deref()), (keys("two", "2", Some("t=")), Some("us-east-2")));
        assert_eq!(lab.endpoint.as_deref(), Some("http://localhost:9000"));
        assert_eq!(of(&[("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")]).keys, None);
    }

    #[test]
    fn that_there_are_no_credentials_is_said_with_where_they_were_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let message = found(folder.path(), &[]).unwrap_err();
        for part in
            ["AWS_ACCESS_KEY_ID", ".aws/credentials can't be read", ".aws/config can't be read", "AWS_SKIP_SIGNATURE"]
        {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(found(folder.path(), &[("AWS_SKIP_SIGNATURE", "true")]).is_ok());
        std::fs::create_dir(folder.path().join(".aws")).unwrap();
        std::fs::write(folder.path().join(".aws/credentials"), CREDENTIALS).unwrap();
        std::fs::write(folder.path().join(".aws/config"), CONFIG).unwrap();
        for (profile, wanted) in [
            ("nowhere", "AWS_PROFILE = \"nowhere\", and no such profile"),
            ("half", "[half] of"),
            ("sso", "gets them by sso_session, which is not supported"),
        ] {
            let message = found(folder.path(), &[("AWS_PROFILE", profile)]).unwrap_err();
            assert!(message.contains(wanted), "{message}");
        }
    }
}
