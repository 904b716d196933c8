//! Promise: large transfers arrive whole: segmentation, encapsulation and the endpoints' MTU fit together.
use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result, anyhow};
use weft_integration::{
    fleet::{Party, scenario},
    limits::READY,
};

const BYTES: usize = 8 << 20;

fn pattern() -> Vec<u8> {
    (0..BYTES).map(|at| u8::try_from((at * 31 + at / 251) % 256).unwrap_or_default()).collect()
}

/// Sends the pattern from one to the other; what arrived.
fn transfer(from: &Party, to: &Party, address: IpAddr, port: u16) -> Result<Vec<u8>> {
    let listener = to.namespace.within(move || Ok(TcpListener::bind(("::", port))?))?;
    let sender = from.namespace.spawn(move || {
        let mut connection = TcpStream::connect((address, port)).context("connect")?;
        connection.set_write_timeout(Some(READY))?;
        Ok(connection.write_all(&pattern())?)
    });
    let receiver = thread::spawn(move || {
        let (mut connection, _) = listener.accept()?;
        connection.set_read_timeout(Some(READY))?;
        let mut received = Vec::with_capacity(BYTES);
        connection.read_to_end(&mut received)?;
        Ok::<_, anyhow::Error>(received)
    });
    sender.join().map_err(|_| anyhow!("the sender panicked"))??;
    receiver.join().map_err(|_| anyhow!("the receiver panicked"))?
}

#[test]
fn megabytes_arrive_whole_between_nodes_on_one_node_and_from_the_world() -> Result<()> {
    scenario("bulk", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?;
        fleet.attach(1, "near", &[("app", "near")])?;
        fleet.attach(2, "far", &[("app", "far")])?;
        let expected = pattern();
        for (number, (from, family)) in
            [("near", 4), ("near", 6), ("far", 4), ("far", 6), ("world", 4), ("world", 6)]
                .into_iter()
                .enumerate()
        {
            let port = 1000 + u16::try_from(number)?;
            let received = transfer(fleet.party(from)?, &server, server.address(family)?, port)?;
            assert!(
                received == expected,
                "{from} IPv{family}: {} bytes arrived, or other ones",
                received.len()
            );
        }
        Ok(())
    })
}
