//! Why and where packets are dropped. Numbers never change their meaning; new ones are added at the end.

macro_rules! numbered {
    ($(#[$outer:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $number:literal => $text:literal,)+ }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$doc])* $variant = $number,)+ }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// As operators read it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The one with this number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

numbered! {
    /// What became of a packet. The first few are not drops: they are counted, too.
    Reason {
        /// Delivered to an endpoint of this node.
        DeliveredLocal = 0 => "delivered_local",
        /// Sent into the overlay.
        DeliveredOverlay = 1 => "delivered_overlay",
        /// Handed to the node's network stack.
        DeliveredStack = 2 => "delivered_stack",
        /// A question of ARP or ND was answered.
        NeighbourAnswered = 3 => "neighbour_answered",
        /// The policy's verdict; the rule is in the event.
        PolicyDenied = 4 => "policy_denied",
        /// The subject has no table, or the table no row that matches: closed by default.
        PolicyMissing = 5 => "policy_missing",
        /// The endpoint is attached, but its policy is not realised yet.
        EndpointInit = 6 => "endpoint_init",
        /// The interface has no endpoint.
        UnknownEndpoint = 7 => "unknown_endpoint",
        /// The source address or MAC is not the endpoint's.
        Spoofed = 8 => "spoofed",
        /// An endpoint sent VXLAN, ESP or IPIP to a node's address.
        ForgedEncapsulation = 9 => "forged_encapsulation",
        /// Truncated, inconsistent lengths, bad header, too many extension headers, a first fragment that
        /// lacks part of the transport header.
        Malformed = 10 => "malformed",
        /// Neither IPv4, IPv6 nor ARP.
        UnknownEtherType = 11 => "unknown_ethertype",
        /// A later fragment whose first was not let through here before it, or that overlaps it: its ports are not known.
        FragmentWithoutFirst = 12 => "fragment_without_first",
        /// Broadcast or multicast other than what ARP and ND need.
        Multicast = 13 => "multicast",
        /// The packet's identity is newer than what this node has been told of.
        IdentityNotYetKnown = 14 => "identity_not_yet_known",
        /// Encapsulated by an address that is no node's, or without tunnel metadata.
        UnknownTunnelPeer = 15 => "unknown_tunnel_peer",
        /// The destination is inside the pools, but no endpoint of this node has it.
        NoEndpoint = 16 => "no_endpoint",
        /// The next hop has no address, or there is no overlay device.
        NoRoute = 17 => "no_route",
        /// Time to live or hop limit is used up.
        TimeExceeded = 18 => "time_exceeded",
        /// A source inside the pools arrived from outside of the overlay.
        PoolSourceOutsideOverlay = 19 => "pool_source_outside_overlay",
        /// A helper of the kernel refused, or a map is full.
        KernelError = 20 => "kernel_error",
        /// A packet of an IPv4 address dressed as IPv6 (mapped address), or a source route.
        ForbiddenAddress = 21 => "forbidden_address",
        /// ND or ARP that no endpoint needs (foreign questions, advertisements, redirects).
        NeighbourIgnored = 22 => "neighbour_ignored",
        /// No drop: a frame with a VLAN tag, of which XDP judges nothing.
        PassedTagged = 23 => "passed_tagged",
        /// No drop: XDP can't read the packet's source. What comes after judges it.
        PassedUnread = 24 => "passed_unread",
        /// No drop: a prefilter lists the source, and a failsafe entry holds the flow open.
        PassedFailsafe = 25 => "passed_failsafe",
        /// A prefilter lists the source.
        Prefiltered = 26 => "prefiltered",
        /// More than the endpoint's rate allows, beyond what may wait.
        RateExceeded = 27 => "rate_exceeded",
        /// No drop: sent on to a service's backend, or what that answers to the client.
        ServiceForwarded = 30 => "service_forwarded",
        /// No drop: the same, without a row that remembers the backend (new connections come too fast, or the table is full).
        ServiceUnremembered = 31 => "service_unremembered",
        /// No drop: the backend is an endpoint of this node, which tc delivers to.
        PassedLocalBackend = 32 => "passed_local_backend",
        /// No drop: XDP knows no way to the backend over the device on which the packet came. The stack may find one.
        PassedNoNeighbour = 33 => "passed_no_neighbour",
        /// No drop: a fragment, or options or extension headers, which XDP does not read.
        PassedNotPlain = 34 => "passed_not_plain",
        /// No drop: the service has nobody for it, which tc rejects.
        PassedNoBackend = 35 => "passed_no_backend",
        /// No drop: what only tc does for services.
        PassedToTc = 36 => "passed_to_tc",
        /// No drop: with the header for its way to the backend it would be too long.
        PassedTooLong = 37 => "passed_too_long",
        /// The service's source ranges don't have the client.
        SourceRefused = 38 => "source_refused",
        /// All the ports are in use that the node has for connections to this backend.
        NoPortLeft = 39 => "no_port_left",
        /// No drop: a connection to a service that nobody answers was refused (TCP RST, ICMP port unreachable).
        ServiceRejected = 40 => "service_rejected",
        /// Nobody answers the service, and the packet is none that can be refused: a fragment, or one with options.
        ServiceUnanswered = 41 => "service_unanswered",
        /// The client has another connection to the same backend with the same ports: answers could not be told apart.
        ServicePortTaken = 42 => "service_port_taken",
        /// The answer of a connection to a service that is not remembered any more.
        ServiceForgotten = 43 => "service_forgotten",
        /// A packet to a service in which the port can't be changed: SCTP in fragments.
        ServiceUntranslatable = 44 => "service_untranslatable",
        /// The service's backend is one to which the node sends nothing from outside.
        ServiceElsewhere = 45 => "service_elsewhere",
        /// No drop: a packet to a service was too long for its way to the backend inside another, and the client was told what fits (ICMP
        /// fragmentation needed, packet too big).
        ServiceToldLength = 46 => "service_told_length",
        /// The same, but the client could not be told: one that is told too often, an error or a later fragment, or IPv6 of less than
        /// every link must take.
        ServiceTooLong = 47 => "service_too_long",
        /// The stack has something for the overlay that is not the node's own: it only passes it on, or other nodes don't
        /// know the node by that address or identity.
        NotTheNodes = 50 => "not_the_nodes",
        /// Out of the overlay from an address of a node, without the identity that the node is known to have; or with it,
        /// from another address.
        WrongNodeIdentity = 51 => "wrong_node_identity",
    }
}

numbered! {
    /// The program that counted.
    Point {
        FromEndpoint = 0 => "tc_from_endpoint",
        ToEndpoint = 1 => "tc_to_endpoint",
        FromOverlay = 2 => "tc_from_overlay",
        FromUplink = 3 => "tc_from_uplink",
        ToUplink = 4 => "tc_to_uplink",
        XdpUplink = 5 => "xdp_uplink",
        ToOverlay = 6 => "tc_to_overlay",
    }
}

impl Reason {
    /// Reasons fit this many rows of counters for each point, with room for later ones.
    pub const ROWS: u32 = 64;

    /// Whether the packet went no further.
    pub const fn is_drop(self) -> bool {
        let number = self as u32;
        let passed = number >= Self::PassedTagged as u32 && number <= Self::PassedFailsafe as u32;
        let sent = number >= Self::ServiceForwarded as u32 && number <= Self::PassedTooLong as u32;
        number >= Self::PolicyDenied as u32
            && !passed
            && !sent
            && !matches!(self, Self::ServiceRejected | Self::ServiceToldLength)
    }
}
