//! Traffic that must not notice what happens meanwhile: echoes and a conversation that policy allows, and probes that it
//! denies.
use anyhow::{Result, ensure};

use super::{Conversation, DeniedProbes, EchoStream, UdpServer};
use crate::{fleet::Party, limits::READY, wait};

/// What clients may reach the server by: UDP, for echoes, and TCP, for a conversation.
const PORTS: (u16, u16) = (1000, 1001);
/// Echoes on each stream that show that it goes on.
const ECHOES: u64 = 200;
/// First port of the probes on the server; no policy may open one from here on.
const DENIED: u16 = 20_000;

/// Watches over one server.
#[derive(Debug)]
pub struct Vigil {
    streams: Vec<EchoStream>,
    probes: Vec<DeniedProbes>,
    talks: Vec<Conversation>,
    _server: UdpServer,
}

impl Vigil {
    /// What it needs: clients have the label `app: client`, the server `app: server`.
    pub const POLICY: &str = "
kind: Policy
name: server
subject: {endpoints: {matchLabels: {app: server}}}
ingress:
  - name: client
    action: allow
    peers: [{endpoints: {matchLabels: {app: client}}}]
    ports: [{protocol: UDP, port: 1000}, {protocol: TCP, port: 1001}]
";

    /// Where [`Vigil::POLICY`], or another that allows as much, is realised. Both families; each client is a prober as
    /// well, on ports that are denied.
    pub fn start(server: &Party, clients: &[&Party]) -> Result<Self> {
        let (echoes, conversation) = PORTS;
        let udp = UdpServer::start(&server.namespace, echoes)?;
        let mut vigil = Self { streams: Vec::new(), probes: Vec::new(), talks: Vec::new(), _server: udp };
        let mut denied = DENIED;
        for client in clients {
            for family in [4, 6] {
                let (from, to, address) = (&client.namespace, &server.namespace, server.address(family)?);
                vigil.streams.push(EchoStream::start(from, (address, echoes).into()));
                vigil.probes.push(DeniedProbes::start(from, to, (address, denied).into())?);
                denied += 1;
            }
        }
        for (client, family) in clients.iter().zip([4, 6]) {
            let (from, to, address) = (&client.namespace, &server.namespace, server.address(family)?);
            vigil.talks.push(Conversation::establish(from, to, address, conversation)?);
        }
        vigil.goes_on()?;
        Ok(vigil)
    }

    /// Returns once everything has gone on for a while from now.
    pub fn goes_on(&self) -> Result<()> {
        let marks: Vec<_> = self.talks.iter().map(Conversation::mark).collect();
        EchoStream::all_more(&self.streams, ECHOES)?;
        self.talks.iter().zip(marks).try_for_each(|(talk, mark)| talk.passes_after(mark))
    }

    /// Ends it. An error if a packet was lost that is allowed, or one has arrived that is denied.
    pub fn end(self) -> Result<()> {
        for probe in self.probes {
            wait::until_true("probes were sent", READY, || Ok(probe.sent() > 0))?;
            let (sent, arrived) = probe.stop()?;
            ensure!(arrived == 0, "{arrived} of {sent} denied packets have arrived");
        }
        for stream in self.streams {
            let echoes = stream.stop()?;
            ensure!(echoes.lost() == 0, "packets were lost: {echoes:?}");
        }
        Ok(())
    }
}
