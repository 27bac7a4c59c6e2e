//! A server that takes what is posted.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The server. Its threads live as long as the process.
pub(crate) struct HttpServer {
    port: u16,
    /// Pages, each with what has been posted to it.
    posted: Arc<Mutex<Vec<(String, String)>>>,
}

impl HttpServer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port for the server");
        let port = listener.local_addr().expect("the server's port").port();
        let posted = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&posted);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let connection = connection.expect("a connection");
                let posted = Arc::clone(&all);
                thread::spawn(move || {
                    serve(&connection, &posted).expect("a client that ends well")
                });
            }
        });
        HttpServer { port, posted }
    }

    /// The address of a page.
    pub(crate) fn url(&self, page: &str) -> String {
        format!("http://127.0.0.1:{}/{page}", self.port)
    }

    /// What has been posted to a page since the last call of [`Self::clear`].
    pub(crate) fn posted(&self, page: &str) -> String {
        self.posted
            .lock()
            .expect("what was posted")
            .iter()
            .filter(|(posted_to, _)| posted_to.trim_start_matches('/') == page)
            .map(|(_, content)| content.as_str())
            .collect()
    }

    pub(crate) fn clear(&self) {
        self.posted.lock().expect("what was posted").clear();
    }
}

/// Answers the requests of a connection until the client ends it.
fn serve(connection: &TcpStream, posted: &Mutex<Vec<(String, String)>>) -> io::Result<()> {
    let mut reader = BufReader::new(connection);
    let mut writer = connection;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim_end().is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':') {
                if name.eq_ignore_ascii_case("Content-Length") {
                    length = value.trim().parse().expect("a length");
                }
            }
        }
        let mut content = vec![0; length];
        reader.read_exact(&mut content)?;
        let page = request.split_whitespace().nth(1).unwrap_or_default();
        posted.lock().expect("what was posted").push((
            page.to_owned(),
            String::from_utf8_lossy(&content).into_owned(),
        ));
        writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
    }
}
