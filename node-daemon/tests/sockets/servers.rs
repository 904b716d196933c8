//! Backends that say who they are.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Answers every connection with its own address, and then whatever comes.
pub(crate) fn tcp(address: &str, port: u16) {
    let address: IpAddr = address.parse().unwrap();
    let listener = TcpListener::bind((address, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            thread::spawn(move || {
                let mut buffer = [0; 64];
                stream.write_all(format!("{address}\n").as_bytes()).unwrap_or_default();
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&buffer[..length]).unwrap_or_default();
                }
            });
        }
    });
}

/// Answers every connection to any address with that address.
pub(crate) fn tcp_anywhere(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let Ok(own) = stream.local_addr() else { continue };
            stream.write_all(format!("{}\n", own.ip()).as_bytes()).unwrap_or_default();
        }
    });
}

/// Answers every datagram with its own address.
pub(crate) fn udp(address: &str, port: u16) {
    let address: IpAddr = address.parse().unwrap();
    let socket = UdpSocket::bind((address, port)).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(address.to_string().as_bytes(), from).unwrap_or_default();
        }
    });
}

/// Who answers the connection.
pub(crate) fn greeting(stream: &TcpStream) -> IpAddr {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let (mut text, mut byte, mut stream) = (String::new(), [0], stream);
    loop {
        stream.read_exact(&mut byte).unwrap();
        if byte[0] == b'\n' {
            return text.parse().unwrap();
        }
        text.push(byte[0].into());
    }
}

/// Who answers a new connection.
pub(crate) fn ask_tcp(service: &str) -> std::io::Result<IpAddr> {
    Ok(greeting(&TcpStream::connect(service.parse::<SocketAddr>().unwrap())?))
}

/// Who answers, and from where the answer seems to come.
pub(crate) fn ask_udp(socket: &UdpSocket, service: &str) -> std::io::Result<(IpAddr, SocketAddr)> {
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.send_to(b"?", service.parse::<SocketAddr>().unwrap())?;
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((std::str::from_utf8(&buffer[..length]).unwrap().parse().unwrap(), from))
}
