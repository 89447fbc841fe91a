//! nftables over netlink: transactions out, listings in. What the rules mean is decided by [`super::rules`] (our own
//! table) and [`super::forwarding`] (other people's).
//!
//! All changes of a [`Batch`] happen at one instant or not at all, so there is no moment with half a firewall.

pub(super) mod expr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
pub(super) use netlink_packet_netfilter::NetfilterProtoFamily as Family;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, HookNumber, InetHookNumber, ListAttribute, NfTablesMessage,
    RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetFlags,
    SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner};
use netlink_sys::protocols::NETLINK_NETFILTER;

use self::expr::Expression;
use super::error::Refusal;
use super::netlink::{Channel, Request};

/// `NFNL_SUBSYS_NFTABLES`: which subsystem a transaction is for.
const SUBSYSTEM: u16 = 10;
/// The kernel's limit for names of tables, chains and sets is 255 bytes, for what is seen in practice far less.
pub(super) const TABLE_NAME_MAX: usize = 64;
/// Elements of one message: an attribute's length is 16 bits, and an element is under 64 bytes.
const ELEMENTS_PER_MESSAGE: usize = 512;
/// The kind of a rule's user data that holds a comment (libnftnl's `NFTNL_UDATA_RULE_COMMENT`).
const USERDATA_COMMENT: u8 = 0;
/// The kind of a set's user data that holds the byte order of its keys (`NFTNL_UDATA_SET_KEYBYTEORDER`).
const USERDATA_KEY_ORDER: u8 = 0;

/// A base chain: where in a packet's way it is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct BaseChain {
    pub(super) name: &'static str,
    /// `filter` or `nat`.
    pub(super) kind: &'static str,
    pub(super) hook: InetHookNumber,
    /// Lower is earlier; nftables' own names: raw -300, dstnat -100, filter 0, srcnat 100.
    pub(super) priority: i32,
}

/// A set, or a map when it has values. The types are for those who list it; the kernel looks at the lengths only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) key: Field,
    pub(super) value: Option<Field>,
}

/// A key or a value: nft's number for its type, and its bytes, each part padded to four.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) kind: u32,
    pub(super) length: u32,
    /// Whether it is in the host's byte order, as names of links are; addresses and ports are in the network's.
    pub(super) host_order: bool,
}

/// A member of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

/// Where a rule stands in its chain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    First,
    Last,
}

/// A chain that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChainFacts {
    pub(super) table: String,
    pub(super) name: String,
    /// Whether packets that are forwarded pass here by themselves.
    pub(super) at_forward: bool,
    /// Only base chains have one; `false` is drop.
    pub(super) accepts: Option<bool>,
}

/// A rule that exists and has a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TaggedRule {
    pub(super) chain: String,
    pub(super) handle: u64,
    pub(super) comment: String,
}

/// Changes that happen together, all in one table of the family `ip`.
pub(super) struct Batch {
    table: String,
    requests: Vec<Request<NetfilterMessage>>,
    /// Numbers the sets within the transaction: a rule may name a set that is created by the same one.
    sets: u32,
}

impl Batch {
    pub(super) fn new(table: &str) -> Batch {
        Batch { table: table.to_owned(), requests: Vec::new(), sets: 0 }
    }

    /// Creates the table where it is missing.
    pub(super) fn create_table(&mut self) {
        let attributes = vec![TableAttribute::Name(self.table.clone())];
        self.push(NfTablesMessage::NewTable(TableMessage { attributes }), NLM_F_CREATE);
    }

    /// Deletes the table with all in it; it must exist.
    pub(super) fn delete_table(&mut self) {
        let attributes = vec![TableAttribute::Name(self.table.clone())];
        self.push(NfTablesMessage::DeleteTable(TableMessage { attributes }), 0);
    }

    /// Creates a base chain whose policy is accept.
    pub(super) fn create_chain(&mut self, chain: BaseChain) {
        const ACCEPT: u32 = 1;
        let hook = vec![
            Hook::Number(HookNumber::Inet(chain.hook)),
            // The bits of a negative priority: the kernel reads the same 32 bits as signed.
            Hook::Priority(chain.priority as u32),
        ];
        let attributes = vec![
            ChainAttribute::Table(self.table.clone()),
            ChainAttribute::Name(chain.name.to_owned()),
            ChainAttribute::Hook(hook),
            ChainAttribute::Policy(ACCEPT),
            ChainAttribute::Type(chain.kind.to_owned()),
        ];
        self.push(NfTablesMessage::NewChain(ChainMessage { attributes }), NLM_F_CREATE);
    }

    /// Creates a set or map.
    pub(super) fn create_set(&mut self, set: Set) {
        self.sets += 1;
        let mut attributes = vec![
            SetAttribute::Table(self.table.clone()),
            SetAttribute::Name(set.name.to_owned()),
            SetAttribute::Flags(if set.value.is_some() { SetFlags::Map } else { SetFlags::empty() }),
            SetAttribute::KeyType(set.key.kind),
            SetAttribute::KeyLen(set.key.length),
            SetAttribute::Id(self.sets),
            SetAttribute::UserData(byte_order_bytes(set.key.host_order)),
        ];
        if let Some(value) = set.value {
            attributes.push(SetAttribute::DataType(value.kind));
            attributes.push(SetAttribute::DataLen(value.length));
        }
        self.push(NfTablesMessage::NewSet(SetMessage { attributes }), NLM_F_CREATE);
    }

    /// Adds a rule; a comment is how it is found again.
    pub(super) fn add_rule(&mut self, chain: &str, place: Place, comment: Option<&str>, rule: Vec<Expression>) {
        let mut attributes = vec![
            RuleAttribute::Table(self.table.clone()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(rule),
        ];
        attributes.extend(comment.map(|text| RuleAttribute::UserData(comment_bytes(text))));
        // Without append the kernel puts a rule first.
        let flags = NLM_F_CREATE | if place == Place::Last { NLM_F_APPEND } else { 0 };
        self.push(NfTablesMessage::NewRule(RuleMessage { attributes }), flags);
    }

    /// Deletes the rule with that handle.
    pub(super) fn delete_rule(&mut self, chain: &str, handle: u64) {
        let attributes = vec![
            RuleAttribute::Table(self.table.clone()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Handle(handle),
        ];
        self.push(NfTablesMessage::DeleteRule(RuleMessage { attributes }), 0);
    }

    /// Deletes all rules of a chain.
    #[cfg(test)]
    pub(super) fn flush_chain(&mut self, chain: &str) {
        let attributes = vec![RuleAttribute::Table(self.table.clone()), RuleAttribute::Chain(chain.to_owned())];
        self.push(NfTablesMessage::DeleteRule(RuleMessage { attributes }), 0);
    }

    /// Adds members; the transaction fails with EEXIST where a key is there already.
    pub(super) fn add_elements(&mut self, set: &str, elements: &[Element]) {
        for message in self.element_messages(set, elements) {
            self.push(NfTablesMessage::NewSetElement(message), NLM_F_CREATE | NLM_F_EXCL);
        }
    }

    /// Deletes members; the transaction fails with ENOENT where one is missing.
    pub(super) fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        for message in self.element_messages(set, elements) {
            self.push(NfTablesMessage::DeleteSetElement(message), 0);
        }
    }

    fn element_messages(&self, set: &str, elements: &[Element]) -> Vec<SetElementMessage> {
        let message = |part: &[Element]| SetElementMessage {
            attributes: vec![
                SetElementList::Table(self.table.clone()),
                SetElementList::Set(set.to_owned()),
                SetElementList::Elements(part.iter().map(element_attributes).collect()),
            ],
        };
        elements.chunks(ELEMENTS_PER_MESSAGE).map(message).collect()
    }

    fn push(&mut self, message: NfTablesMessage, flags: u16) {
        self.requests.push(Request { message: wrapped(message), flags });
    }
}

fn element_attributes(element: &Element) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(element.key.clone()))];
    attributes.extend(element.value.iter().map(|value| SetElementAttribute::Data(DataAttribute::Value(value.clone()))));
    ListAttribute::Element(attributes)
}

/// User data of a set, for those who list it: kind, length, byte order.
fn byte_order_bytes(host_order: bool) -> Vec<u8> {
    let order: u32 = if host_order { 1 } else { 2 };
    [&[USERDATA_KEY_ORDER, 4][..], &order.to_ne_bytes()].concat()
}

/// User data of a rule: kind, length with the closing zero, text.
fn comment_bytes(text: &str) -> Vec<u8> {
    let mut bytes = vec![USERDATA_COMMENT, (text.len() + 1) as u8];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

fn comment_of(userdata: &[u8]) -> Option<String> {
    let (&kind, rest) = userdata.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let text = rest.get(..usize::from(length)).filter(|_| kind == USERDATA_COMMENT)?;
    String::from_utf8(text.strip_suffix(b"\0")?.to_vec()).ok()
}

fn wrapped(message: NfTablesMessage) -> NetfilterMessage {
    of_family(Family::IPv4, message)
}

fn of_family(family: Family, message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

/// A conversation with nftables of one network namespace.
pub(super) struct Nft {
    channel: Channel,
}

impl Nft {
    /// Speaks about the namespace of the calling thread.
    pub(super) fn open() -> Result<Nft, Refusal> {
        Ok(Nft { channel: Channel::open(NETLINK_NETFILTER)? })
    }

    /// Where our changes come from, as others are told.
    pub(super) fn port(&self) -> Result<u32, Refusal> {
        self.channel.port()
    }

    /// Does all of a batch or nothing.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<(), Refusal> {
        let border = |message| {
            let header = NetfilterHeader::new(Family::Unspec, 0, SUBSYSTEM);
            NetfilterMessage::new(header, message)
        };
        let (begin, end) = (border(ControlMessage::BatchBegin), border(ControlMessage::BatchEnd));
        self.channel.transact(begin, batch.requests, end)
    }

    /// All chains of a family.
    pub(super) fn chains(&mut self, family: Family) -> Result<Vec<ChainFacts>, Refusal> {
        let question = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        self.dump(of_family(family, question), |message| match message {
            NfTablesMessage::NewChain(chain) => vec![chain_facts(chain)],
            _ => Vec::new(),
        })
    }

    /// The rules of a table that have a comment; a table that is not there has none.
    pub(super) fn tagged_rules(&mut self, table: &str) -> Result<Vec<TaggedRule>, Refusal> {
        let attributes = vec![RuleAttribute::Table(table.to_owned())];
        self.dump(wrapped(NfTablesMessage::GetRule(RuleMessage { attributes })), |message| match message {
            NfTablesMessage::NewRule(rule) => tagged_rule(rule, table).into_iter().collect(),
            _ => Vec::new(),
        })
    }

    /// The members' keys of a set; a set or table that is not there has none.
    pub(super) fn keys(&mut self, table: &str, set: &str) -> Result<Vec<Vec<u8>>, Refusal> {
        let attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())];
        self.dump(wrapped(NfTablesMessage::GetSetElement(SetElementMessage { attributes })), |message| match message {
            NfTablesMessage::NewSetElement(list) => list.attributes.into_iter().flat_map(element_keys).collect(),
            _ => Vec::new(),
        })
    }

    fn dump<T>(
        &mut self,
        question: NetfilterMessage,
        mut each: impl FnMut(NfTablesMessage) -> Vec<T>,
    ) -> Result<Vec<T>, Refusal> {
        let outcome = self.channel.dump(question, |message| match message.inner {
            NetfilterMessageInner::NfTables(message) => Some(each(message)),
            _ => None,
        });
        match outcome {
            // What does not exist has nothing in it.
            Err(refusal) if refusal.is(libc::ENOENT) => Ok(Vec::new()),
            outcome => Ok(outcome?.into_iter().flatten().collect()),
        }
    }
}

fn chain_facts(chain: ChainMessage) -> ChainFacts {
    let mut facts = ChainFacts { table: String::new(), name: String::new(), at_forward: false, accepts: None };
    for attribute in chain.attributes {
        match attribute {
            ChainAttribute::Table(table) => facts.table = table,
            ChainAttribute::Name(name) => facts.name = name,
            ChainAttribute::Hook(hook) => {
                facts.at_forward = hook.contains(&Hook::Number(HookNumber::Inet(InetHookNumber::Forward)));
            }
            ChainAttribute::Policy(policy) => facts.accepts = Some(policy != 0),
            _ => {}
        }
    }
    facts
}

fn tagged_rule(rule: RuleMessage, of_table: &str) -> Option<TaggedRule> {
    let (mut chain, mut handle, mut comment, mut table) = (None, None, None, None);
    for attribute in rule.attributes {
        match attribute {
            RuleAttribute::Table(name) => table = Some(name),
            RuleAttribute::Chain(name) => chain = Some(name),
            RuleAttribute::Handle(number) => handle = Some(number),
            RuleAttribute::UserData(bytes) => comment = comment_of(&bytes),
            _ => {}
        }
    }
    // The dump is asked for one table, but the filter is the kernel's courtesy: checked here too.
    (table.as_deref() == Some(of_table)).then_some(())?;
    Some(TaggedRule { chain: chain?, handle: handle?, comment: comment? })
}

fn element_keys(list: SetElementList) -> Vec<Vec<u8>> {
    let SetElementList::Elements(elements) = list else { return Vec::new() };
    let key = |attribute: SetElementAttribute| match attribute {
        SetElementAttribute::Key(DataAttribute::Value(bytes)) => Some(bytes),
        _ => None,
    };
    let keys = elements.into_iter().filter_map(|element| match element {
        ListAttribute::Element(attributes) => attributes.into_iter().find_map(key),
        _ => None,
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_read_back() {
        assert_eq!(comment_of(&comment_bytes("strata-x: bridge")), Some("strata-x: bridge".to_owned()));
        for bad in [&[][..], &[0], &[0, 9, b'a', 0], &[1, 2, b'a', 0], &[0, 1, b'a']] {
            assert_eq!(comment_of(bad), None, "{bad:?}");
        }
    }
}
