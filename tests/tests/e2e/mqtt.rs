//! A real broker, and somebody at the other end of it.

use std::fs;
use std::net::{SocketAddrV4, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use collectd_live_tests::{eventually, own_address};
use rumqttc::{Client, Event, MqttOptions, Packet, QoS};

const DEADLINE: Duration = Duration::from_secs(20);

/// A mosquitto at an address of its own. It is killed when the value is dropped.
pub(crate) struct Broker {
    process: Child,
    address: SocketAddrV4,
    _dir: tempfile::TempDir,
}

impl Broker {
    pub(crate) fn start(port: u16) -> Self {
        let address = own_address(port);
        let dir = tempfile::tempdir().expect("a directory for the broker");
        let conf = dir.path().join("mosquitto.conf");
        // As root, mosquitto would become another user, who may not read this directory.
        let text = format!(
            "user root\nlistener {} {}\nallow_anonymous true\n",
            address.port(),
            address.ip()
        );
        fs::write(&conf, text).expect("the broker's configuration");
        let program = if Path::new("/usr/sbin/mosquitto").exists() {
            "/usr/sbin/mosquitto"
        } else {
            "mosquitto"
        };
        let process = Command::new(program)
            .arg("-c")
            .arg(&conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto (apt-get install mosquitto)");
        eventually("the broker to listen", DEADLINE, || {
            TcpStream::connect(address).ok()
        });
        Broker {
            process,
            address,
            _dir: dir,
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddrV4 {
        self.address
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Both fail only if the process is gone already, which is what we want.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Somebody else at the broker.
pub(crate) struct MqttPeer {
    client: Client,
    /// The last message.
    received: Arc<Mutex<String>>,
}

impl MqttPeer {
    /// Connects, and subscribes to a topic.
    pub(crate) fn connect(broker: &Broker, topic: &str) -> Self {
        let (host, port) = (broker.address.ip().to_string(), broker.address.port());
        let mut options = MqttOptions::new("peer", host, port);
        options.set_keep_alive(Duration::from_secs(60));
        let (client, mut connection) = Client::new(options, 10);
        client
            .subscribe(topic, QoS::AtLeastOnce)
            .expect("a subscription");
        let received = Arc::new(Mutex::new(String::new()));
        let last = Arc::clone(&received);
        thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::Publish(message))) => {
                        *last.lock().expect("the last message") =
                            String::from_utf8_lossy(&message.payload).into_owned();
                    }
                    Ok(_) => {}
                    Err(_) => return, // The broker has ended.
                }
            }
        });
        MqttPeer { client, received }
    }

    /// The last message that was published.
    pub(crate) fn received(&self) -> String {
        self.received.lock().expect("the last message").clone()
    }

    /// Publishes a message.
    pub(crate) fn publish(&self, topic: &str, payload: &str) {
        self.client
            .publish(topic, QoS::AtMostOnce, false, payload)
            .expect("publishing a message");
    }
}
