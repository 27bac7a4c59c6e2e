//! How to connect to a broker.

use std::path::Path;

use native_tls::{Certificate, Identity, Protocol, TlsConnector};
use rumqttc::{ConnectReturnCode, ConnectionError, MqttOptions, QoS, TlsConfiguration, Transport};

use crate::secret::Secret;
use crate::settings::{self, Qos, Tls};

/// The longest packet that is taken. MQTT 3.1.1 cannot refuse a packet without closing the connection, and the
/// broker would deliver it again after each reconnection. So the limit is far above what any sender sends
/// by mistake; what is too long to be a message is passed over later.
const MAX_INCOMING: usize = 64 * 1024 * 1024;
/// The longest packet that is sent: a full output of which every byte needs escaping.
const MAX_OUTGOING: usize = 8 * 1024 * 1024;

/// Options for rumqttc.
pub(crate) fn options(settings: &settings::Remote, client_id: &str) -> Result<MqttOptions, String> {
    // An IPv6 address needs brackets before a port is put behind it.
    let host = match settings.host.contains(':') {
        true => format!("[{}]", settings.host),
        false => settings.host.clone(),
    };
    let mut options = MqttOptions::new(client_id, host, settings.port);
    options.set_clean_session(settings.clean_session);
    options.set_keep_alive(settings.keep_alive);
    options.set_max_packet_size(MAX_INCOMING, MAX_OUTGOING);
    if let Some(user) = &settings.user {
        let password = settings.password.as_ref().map(|password| password.expose());
        options.set_credentials(user, password.unwrap_or_default());
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

fn connector(tls: &Tls) -> Result<TlsConnector, String> {
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
    use std::time::Duration;

    fn settings() -> settings::Remote {
        settings::Remote {
            host: "::1".into(),
            port: 1883,
            tls: None,
            user: Some("u".into()),
            password: None,
            password_file: None,
            clean_session: true,
            client_id: None,
            qos: Qos::AtMostOnce,
            command_topic: "c".into(),
            result_topic: None,
            status_topic: None,
            reconnect: None,
            keep_alive: Duration::from_secs(5),
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
