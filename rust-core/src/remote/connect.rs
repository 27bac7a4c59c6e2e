//! How to connect to a broker.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::Path;

use native_tls::{Certificate, Identity, Protocol, TlsConnector};
use rumqttc::{
    ConnectReturnCode, ConnectionError, MqttOptions, NetworkOptions, QoS, TlsConfiguration,
    Transport,
};

use super::link::Cause;
use crate::secret::Secret;
use crate::settings::{self, Qos, Tls};

/// The longest packet that is taken. MQTT 3.1.1 cannot refuse a packet without closing the connection, and the
/// broker would deliver it again after each reconnection. So the limit is far above what any sender sends
/// by mistake; what is too long to be a message is passed over later. With MQTT 5 the broker is told, and keeps
/// what is longer to itself.
pub(super) const MAX_INCOMING: usize = 64 * 1024 * 1024;
/// The longest packet that is sent: a full output of which every byte needs escaping.
const MAX_OUTGOING: usize = 8 * 1024 * 1024;

/// The host. An IPv6 address needs brackets before a port is put behind it.
pub(super) fn host(settings: &settings::Remote) -> String {
    match settings.host.contains(':') {
        true => format!("[{}]", settings.host),
        false => settings.host.clone(),
    }
}

/// Who we are to the broker, and how we prove it.
pub(super) fn credentials(settings: &settings::Remote) -> Option<(&str, &str)> {
    let password = settings.password.as_ref().map(Secret::expose);
    let user = settings.user.as_deref()?;
    Some((user, password.unwrap_or_default()))
}

/// Options for the socket.
pub(super) fn network() -> NetworkOptions {
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network
}

/// Options for rumqttc's client of MQTT 3.1.1.
pub(crate) fn options(settings: &settings::Remote, client_id: &str) -> Result<MqttOptions, String> {
    let mut options = MqttOptions::new(client_id, host(settings), settings.port);
    options.set_clean_session(settings.clean_session);
    options.set_keep_alive(settings.keep_alive);
    options.set_max_packet_size(MAX_INCOMING, MAX_OUTGOING);
    if let Some((user, password)) = credentials(settings) {
        options.set_credentials(user, password);
    }
    if let Some(tls) = &settings.tls {
        let connector = connector(tls)?;
        options.set_transport(Transport::tls_with_config(
            TlsConfiguration::NativeConnector(connector),
        ));
    }
    Ok(options)
}

/// The password in a file: its first line.
pub(crate) fn password(path: &Path) -> Result<Secret, String> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = settings::read_regular_file(path).map_err(|error| fail(&error))?;
    let text = String::from_utf8(text).map_err(|_| fail(&"is not UTF-8"))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(fail(&"there is no password in its first line"));
    }
    Ok(Secret::new(line))
}

/// The password that the settings only say where to find, if they do. The function knows the environment.
pub(crate) fn kept_password(
    settings: &settings::Remote,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Secret>, String> {
    if let Some(path) = &settings.password_file {
        return password(path).map(Some);
    }
    if let Some(name) = &settings.password_credential {
        let directory = environment("CREDENTIALS_DIRECTORY").ok_or_else(|| {
            format!("PasswordCredential: systemd has passed no credentials, so there is no {name:?}; the unit needs LoadCredential={name}:PATH")
        })?;
        return password(&Path::new(&directory).join(name)).map(Some);
    }
    let Some(name) = &settings.password_environment else {
        return Ok(None);
    };
    let fail = |what| format!("PasswordEnvironment: the variable {name:?} {what}");
    let value = environment(name).ok_or_else(|| fail("is not set"))?;
    match value.into_string() {
        Ok(text) if text.is_empty() => Err(fail("is empty")),
        Ok(text) => Ok(Some(Secret::new(text))),
        Err(_) => Err(fail("is not UTF-8")),
    }
}

pub(super) fn connector(tls: &Tls) -> Result<TlsConnector, String> {
    let fail = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let read = |path: &Path| std::fs::read(path).map_err(|error| fail(path, &error));
    let mut builder = TlsConnector::builder();
    builder.min_protocol_version(Some(Protocol::Tlsv12));
    if let Some(path) = &tls.ca_file {
        let authorities = Certificate::stack_from_pem(&read(path)?).map_err(|e| fail(path, &e))?;
        if authorities.is_empty() {
            return Err(fail(path, &"there is no certificate in it"));
        }
        // A site that names its authority does not want everybody else's.
        builder.disable_built_in_roots(true);
        for authority in authorities {
            builder.add_root_certificate(authority);
        }
    }
    if let Some((certificate, key)) = &tls.identity {
        let identity = Identity::from_pkcs8(&read(certificate)?, &read(key)?)
            .map_err(|e| format!("{} and {}: {e}", certificate.display(), key.display()))?;
        builder.identity(identity);
    }
    builder
        .build()
        .map_err(|error| format!("TLS cannot be set up: {error}"))
}

/// The level in rumqttc's words.
pub(crate) fn qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

/// Whether a socket's error means that the broker has hung up.
pub(super) fn cause(error: &io::Error) -> Cause {
    match error.kind() {
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => {
            Cause::Closed
        }
        _ => Cause::Other,
    }
}

/// The words of a name that is written in one: `NotAuthorized` becomes "not authorized".
pub(super) fn spaced(name: &str) -> String {
    let mut words = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        if c.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(c.to_lowercase());
    }
    words
}

/// An error in the broker's words where it gave some.
pub(crate) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(code) => match code {
            ConnectReturnCode::BadUserNamePassword => "bad user name or password".to_owned(),
            ConnectReturnCode::NotAuthorized => "not authorized".to_owned(),
            ConnectReturnCode::BadClientId => "the client id is refused".to_owned(),
            ConnectReturnCode::ServiceUnavailable => "the broker is unavailable".to_owned(),
            other => format!("refused: {other:?}"),
        },
        // Its text would hold the packet.
        ConnectionError::NotConnAck(_) => "it does not talk MQTT".to_owned(),
        ConnectionError::NetworkTimeout => "no answer in time".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> settings::Remote {
        settings::Remote {
            host: "::1".into(),
            user: Some("u".into()),
            ..settings::Remote::default()
        }
    }

    #[test]
    fn an_address_gets_brackets() {
        assert_eq!(
            options(&settings(), "id").unwrap().broker_address(),
            ("[::1]".to_owned(), 1883)
        );
    }

    #[test]
    fn a_password_is_the_first_line_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        for (text, expected) in [
            ("hunter2\n", Some("hunter2")),
            (" a b \r\nmore\n", Some(" a b ")),
            ("x", Some("x")),
            ("", None),
            ("\nx", None),
        ] {
            std::fs::write(&path, text).unwrap();
            let found = password(&path);
            assert_eq!(
                found.ok().as_ref().map(Secret::expose),
                expected,
                "{text:?}"
            );
        }
        assert!(password(dir.path()).unwrap_err().contains("regular file"));
    }

    #[test]
    fn a_password_is_found_where_the_settings_say() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("broker"), "from systemd\n").unwrap();
        let environment = |name: &str| match name {
            "CREDENTIALS_DIRECTORY" => Some(dir.path().into()),
            "MQTT" => Some("from the environment".into()),
            "EMPTY" => Some("".into()),
            _ => None,
        };
        let find = |credential: Option<&str>, variable: Option<&str>| {
            let settings = settings::Remote {
                password_credential: credential.map(str::to_owned),
                password_environment: variable.map(str::to_owned),
                ..settings()
            };
            let found = kept_password(&settings, environment);
            found.map(|password| password.map(|password| password.expose().to_owned()))
        };
        assert_eq!(find(None, None), Ok(None));
        assert_eq!(find(Some("broker"), None), Ok(Some("from systemd".into())));
        let expected = Ok(Some("from the environment".into()));
        assert_eq!(find(None, Some("MQTT")), expected);
        assert!(find(Some("missing"), None).unwrap_err().contains("missing"));
        for (name, what) in [("EMPTY", "is empty"), ("NONE", "is not set")] {
            let error = find(None, Some(name)).unwrap_err();
            assert_eq!(
                error,
                format!("PasswordEnvironment: the variable {name:?} {what}")
            );
        }
        let outside = settings::Remote {
            password_credential: Some("broker".to_owned()),
            ..settings()
        };
        let error = kept_password(&outside, |_| None).unwrap_err();
        assert!(error.contains("LoadCredential=broker:PATH"), "{error}");
    }

    #[test]
    fn certificates_that_cannot_be_read_are_named() {
        let mut with = settings();
        with.tls = Some(Tls {
            ca_file: Some("/nonexistent/ca.pem".into()),
            identity: None,
        });
        let error = options(&with, "id").map(|_| ()).unwrap_err();
        assert!(
            error.starts_with("/nonexistent/ca.pem: No such file"),
            "{error}"
        );
        with.tls = Some(Tls {
            ca_file: Some("/dev/null".into()),
            identity: None,
        });
        let error = options(&with, "id").map(|_| ()).unwrap_err();
        assert_eq!(error, "/dev/null: there is no certificate in it");
    }
}
