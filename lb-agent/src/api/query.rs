//! Questions as they stand in the query of a request: the client writes them, the server reads them.

use std::net::{IpAddr, SocketAddr};

use lb_core::{
    decision::{BackendQuery, Packet},
    node::NodeFacts,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use super::{Entry, Protocol};
use crate::flow::{self, FlowError};

/// The packet that `/v1/explain` is about, and how to look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExplainQuery {
    /// Protocol of the packet, in any case.
    #[serde(deserialize_with = "protocol")]
    pub protocol: Protocol,
    /// Sender. The port is 1..=65535.
    #[serde(deserialize_with = "end")]
    pub source: SocketAddr,
    /// Receiver, of the family of the sender. The port is 1..=65535.
    #[serde(deserialize_with = "end")]
    pub destination: SocketAddr,
    /// Where the packet enters the node. The default follows from the source: a socket for an address of the node, the
    /// device of a pod for one in a cluster CIDR, an uplink for any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<Entry>,
    /// Whether to ask the kernel as well. The default is no.
    #[serde(default, skip_serializing_if = "is_false")]
    pub verify: bool,
    /// A backend about which to say why it is, or is not, the choice.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "written",
        deserialize_with = "backend"
    )]
    pub why_not: Option<BackendQuery>,
}

impl ExplainQuery {
    /// Asks about the packet alone; the agent finds out where it enters the node.
    ///
    /// # Errors
    /// When the two addresses are of different families.
    pub fn new(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Result<Self, FlowError> {
        flow::same_family(source.ip(), destination.ip())?;
        Ok(Self { protocol, source, destination, entry: None, verify: false, why_not: None })
    }

    /// The packet, on this node.
    pub(crate) fn packet(&self, node: &NodeFacts) -> Result<Packet, FlowError> {
        flow::same_family(self.source.ip(), self.destination.ip())?;
        Ok(Packet {
            entry: self.entry.map_or_else(|| flow::entry_of(self.source.ip(), node), Into::into),
            protocol: self.protocol.into(),
            source: self.source.ip(),
            source_port: self.source.port(),
            destination: self.destination.ip(),
            destination_port: self.destination.port(),
        })
    }
}

/// The query of `/v1/pools/get`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PoolQuery {
    pub(super) name: String,
}

/// The query of `/v1/pools/explain`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AddressQuery {
    pub(super) address: IpAddr,
}

/// The query of `/v1/pools/plan`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PlanQuery {
    /// Name of the file in messages.
    #[serde(default = "request")]
    pub(super) file: String,
    /// Pools that would go.
    #[serde(default)]
    pub(super) remove: Vec<String>,
}

/// The path with the question as its query.
pub(super) fn target(path: &str, question: &impl Serialize) -> String {
    let query = serde_html_form::to_string(question).expect("a question is a flat struct of texts and flags");
    format!("{path}?{query}")
}

/// The question in a query. The error names the parameter that is wrong.
pub(super) fn read<T: DeserializeOwned>(query: Option<&str>) -> Result<T, String> {
    let pairs = serde_html_form::Deserializer::from_bytes(query.unwrap_or_default().as_bytes());
    serde_path_to_error::deserialize(pairs).map_err(|error| {
        let parameter = error.path().to_string();
        // A parameter that is missing has no path; its error names it.
        if parameter == "." { error.into_inner().to_string() } else { format!("{parameter}: {}", error.into_inner()) }
    })
}

fn protocol<'de, D: Deserializer<'de>>(from: D) -> Result<Protocol, D::Error> {
    parsed(from, str::parse)
}

fn end<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    parsed(from, flow::parse_end)
}

fn backend<'de, D: Deserializer<'de>>(from: D) -> Result<Option<BackendQuery>, D::Error> {
    parsed(from, flow::parse_backend).map(Some)
}

fn parsed<'de, D: Deserializer<'de>, T>(from: D, parse: fn(&str) -> Result<T, FlowError>) -> Result<T, D::Error> {
    parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

fn written<S: Serializer>(backend: &Option<BackendQuery>, to: S) -> Result<S::Ok, S::Error> {
    match backend {
        Some(backend) => to.collect_str(backend),
        None => to.serialize_none(),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn request() -> String {
    "request".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeFacts {
        NodeFacts {
            ips: vec!["192.0.2.1".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            ..NodeFacts::default()
        }
    }

    fn question(query: &str) -> Result<ExplainQuery, String> {
        read(Some(query))
    }

    fn packet(query: &str) -> Packet {
        question(query).unwrap().packet(&node()).unwrap()
    }

    #[test]
    fn a_packet_enters_where_its_source_is_at_home() {
        let entry = |source: &str| packet(&format!("protocol=tcp&source={source}&destination=10.96.0.1:80")).entry;
        assert_eq!(entry("192.0.2.1:4000"), lb_core::decision::Entry::Socket);
        assert_eq!(entry("10.244.3.4:4000"), lb_core::decision::Entry::PodDevice);
        assert_eq!(entry("198.51.100.1:4000"), lb_core::decision::Entry::Uplink);
    }

    #[test]
    fn a_mapped_address_is_ipv4() {
        let packet = packet("protocol=tcp&source=[::ffff:10.244.3.4]:4000&destination=10.96.0.1:80");
        assert_eq!((packet.source, packet.entry), ("10.244.3.4".parse().unwrap(), lb_core::decision::Entry::PodDevice));
    }

    #[test]
    fn a_given_entry_comes_before_the_source() {
        let packet = packet("protocol=UDP&source=%5Bfd00::1%5D:53&destination=[fd00::2]:53&entry=socket");
        assert_eq!(
            (packet.entry, packet.protocol, packet.source_port),
            (lb_core::decision::Entry::Socket, lb_core::addr::Protocol::Udp, 53)
        );
    }

    #[test]
    fn a_question_survives_its_query() {
        let plain =
            ExplainQuery::new(Protocol::Sctp, "[fd00::1]:1".parse().unwrap(), "[fd00::2]:2".parse().unwrap()).unwrap();
        let full = ExplainQuery {
            entry: Some(Entry::Pod),
            verify: true,
            why_not: Some(flow::parse_backend("[fd00::5]:80").unwrap()),
            ..plain
        };
        assert_eq!(
            target("/x", &plain),
            "/x?protocol=sctp&source=%5Bfd00%3A%3A1%5D%3A1&destination=%5Bfd00%3A%3A2%5D%3A2"
        );
        for asked in [plain, full] {
            assert_eq!(question(target("", &asked).strip_prefix('?').unwrap()).unwrap(), asked);
        }
        let asked = PlanQuery { file: "a b&c=d%ü".into(), remove: vec!["blue".into(), "green".into()] };
        let heard: PlanQuery = read(target("", &asked).strip_prefix('?')).unwrap();
        assert_eq!((heard.file, heard.remove), (asked.file, asked.remove));
        let heard: PlanQuery = read(None).unwrap();
        assert_eq!((heard.file.as_str(), heard.remove.len()), ("request", 0));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let error = |protocol: &str, source: &str, destination: &str, more: &str| {
            let query = format!("protocol={protocol}&source={source}&destination={destination}{more}");
            question(&query).map_err(|error| error.to_string()).unwrap_err()
        };
        let good = "10.0.0.1:1";
        assert!(error("icmp", good, good, "").starts_with("protocol: `icmp` is not known"));
        assert!(error("tcp", "10.0.0.1", good, "").starts_with("source: `10.0.0.1` is not ADDRESS:PORT"));
        assert!(error("tcp", good, "[::1]", "").starts_with("destination: `[::1]`"));
        assert!(error("tcp", good, "10.0.0.1:0", "").contains("port 0"));
        let entry = error("tcp", good, good, "&entry=door");
        assert!(entry.starts_with("entry: ") && entry.contains("`door`"), "{entry}");
        assert!(error("tcp", good, good, "&why-not=httpd-1").starts_with("why-not: `httpd-1` is neither"));
        assert!(error("tcp", good, good, "&verify=maybe").starts_with("verify: "));
        assert!(question("protocol=tcp&source=10.0.0.1:1").unwrap_err().contains("`destination`"));
        let (v4, v6) = (good.parse().unwrap(), "[::1]:1".parse().unwrap());
        assert!(ExplainQuery::new(Protocol::Tcp, v4, v6).unwrap_err().to_string().contains("different families"));
        let mixed = question("protocol=tcp&source=10.0.0.1:1&destination=[::1]:1").unwrap();
        assert!(mixed.packet(&node()).unwrap_err().to_string().contains("different families"));
    }
}
