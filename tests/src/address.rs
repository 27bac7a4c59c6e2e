//! Addresses for servers that cannot be told to pick a free port.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process;

/// A port of a loopback address that is this process's own: the network is large
/// enough for one address for each process.
pub fn own_address(port: u16) -> SocketAddrV4 {
    // A process id has 22 bits. The last two avoid the ends of the network.
    let [_, a, b, c] = (process::id() << 2 | 2).to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(127, a, b, c), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_can_be_listened_at() {
        let address = own_address(25_826);
        assert!(address.ip().is_loopback(), "{address}");
        std::net::UdpSocket::bind(address).expect("a socket");
    }
}
