//! The expressions that rules are made of, in the kernel's form.
//!
//! A rule is a list of expressions that run from left to right over a set of registers; the first that does not match
//! ends the rule. The crate's types carry most of them; `nat`, `masq`, `fib`, `ct` and `counter` are written here as plain
//! attributes, by their numbers in `linux/netfilter/nf_tables.h`.

use std::net::Ipv4Addr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta, MetaKey,
    Operator, Payload, Register, Verdict, VerdictAttribute,
};

use crate::network::subnet::Subnet;

/// One expression, as an element of a rule.
pub(in crate::network) type Expression = ListAttribute<ExpressionAttribute>;

/// Registers of 32 bits; what is looked up as one key must stand in neighbours.
pub(in crate::network) const FIRST: Register = Register::Reg32_00;
pub(in crate::network) const SECOND: Register = Register::Reg32_01;
pub(in crate::network) const THIRD: Register = Register::Reg32_02;

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// `RTN_LOCAL`: an address of this host.
const ROUTE_TYPE_LOCAL: u32 = 2;
/// Bytes of a link's name in a register, padded with zeros.
const LINK_NAME_BYTES: usize = 16;
/// Where addresses and ports stand in their headers.
const IPV4_SOURCE: (Base, u32) = (Base::Network, 12);
const IPV4_DESTINATION: (Base, u32) = (Base::Network, 16);
const DESTINATION_PORT: (Base, u32) = (Base::Transport, 2);

/// Bits of a connection's state (`NF_CT_STATE_BIT`).
pub(in crate::network) const STATE_ESTABLISHED: u32 = 1 << 1;
pub(in crate::network) const STATE_RELATED: u32 = 1 << 2;
/// `IPS_DST_NAT`: the connection's destination was rewritten.
pub(in crate::network) const STATUS_DNAT: u32 = 1 << 5;

/// Which header an offset counts from.
#[derive(Clone, Copy)]
enum Base {
    Network = 1,
    Transport = 2,
}

/// What is known about a packet's connection.
#[derive(Clone, Copy)]
pub(in crate::network) enum Conntrack {
    State = 0,
    Status = 2,
}

/// The packet came in by the link of that name.
pub(in crate::network) fn incoming_link_is(name: &str) -> [Expression; 2] {
    [meta(MetaKey::Iifname, FIRST), compare(FIRST, Operator::Equal, link_name(name))]
}

/// The packet will leave by the link of that name.
pub(in crate::network) fn outgoing_link_is(name: &str) -> [Expression; 2] {
    [meta(MetaKey::Oifname, FIRST), compare(FIRST, Operator::Equal, link_name(name))]
}

/// The packet will leave by another link.
pub(in crate::network) fn outgoing_link_is_not(name: &str) -> [Expression; 2] {
    [meta(MetaKey::Oifname, FIRST), compare(FIRST, Operator::NotEqual, link_name(name))]
}

/// The packet came in by a link whose name is in a set.
pub(in crate::network) fn incoming_link_in(set: &str) -> [Expression; 2] {
    [meta(MetaKey::Iifname, FIRST), lookup(set, FIRST, None)]
}

/// The packet will leave by a link whose name is in a set.
pub(in crate::network) fn outgoing_link_in(set: &str) -> [Expression; 2] {
    [meta(MetaKey::Oifname, FIRST), lookup(set, FIRST, None)]
}

/// The packet did not come from this host itself. The loopback has index 1 in every network namespace.
pub(in crate::network) fn incoming_link_is_not_loopback() -> [Expression; 2] {
    [meta(MetaKey::Iif, FIRST), compare(FIRST, Operator::NotEqual, 1u32.to_ne_bytes().to_vec())]
}

/// The packet comes from an address of the subnet.
pub(in crate::network) fn source_in(subnet: Subnet) -> [Expression; 3] {
    address_in(IPV4_SOURCE, subnet)
}

/// The packet goes to an address of the subnet.
pub(in crate::network) fn destination_in(subnet: Subnet) -> [Expression; 3] {
    address_in(IPV4_DESTINATION, subnet)
}

/// The packet goes to an address of this host.
pub(in crate::network) fn destination_is_local() -> [Expression; 2] {
    [fib_destination_type(FIRST), compare(FIRST, Operator::Equal, ROUTE_TYPE_LOCAL.to_ne_bytes().to_vec())]
}

/// One of `bits` is set in what is known about the packet's connection.
pub(in crate::network) fn connection_has(key: Conntrack, bits: u32) -> [Expression; 3] {
    [conntrack(key, FIRST), mask(FIRST, bits.to_ne_bytes().to_vec()), compare(FIRST, Operator::NotEqual, vec![0; 4])]
}

/// Loads the transport protocol, one byte.
pub(in crate::network) fn load_protocol(register: Register) -> Expression {
    meta(MetaKey::L4Proto, register)
}

/// Loads the destination address, four bytes.
pub(in crate::network) fn load_destination(register: Register) -> Expression {
    payload(IPV4_DESTINATION, 4, register)
}

/// Loads the destination port, two bytes.
pub(in crate::network) fn load_destination_port(register: Register) -> Expression {
    payload(DESTINATION_PORT, 2, register)
}

/// Looks up what begins at `key`; a map's value goes to `value`, and what is not in the set ends the rule.
pub(in crate::network) fn lookup(set: &str, key: Register, value: Option<Register>) -> Expression {
    let mut attributes = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(key)];
    attributes.extend(value.map(Lookup::DestinationRegister));
    Expressions::Lookup(attributes).into()
}

/// Rewrites the destination to the address and the port in two registers.
pub(in crate::network) fn destination_nat(address: Register, port: Register) -> Expression {
    const TYPE: u16 = 1;
    const FAMILY: u16 = 2;
    const ADDRESS_MIN: u16 = 3;
    const PORT_MIN: u16 = 5;
    const TYPE_DNAT: u32 = 1;
    let attributes = vec![
        number(TYPE, TYPE_DNAT),
        number(FAMILY, libc::NFPROTO_IPV4 as u32),
        number(ADDRESS_MIN, address.into()),
        number(PORT_MIN, port.into()),
    ];
    other("nat", attributes)
}

/// Rewrites the source to the address of the link that the packet leaves by.
pub(in crate::network) fn masquerade() -> Expression {
    other("masq", Vec::new())
}

/// Counts packets and bytes; what `iptables` expects in every rule.
pub(in crate::network) fn counter() -> Expression {
    other("counter", Vec::new())
}

/// Ends the rule and the chain: the packet passes.
pub(in crate::network) fn accept() -> Expression {
    verdict(NF_ACCEPT)
}

/// Ends all: the packet is dropped.
pub(in crate::network) fn drop_packet() -> Expression {
    verdict(NF_DROP)
}

/// A link's name as a register holds it.
pub(in crate::network) fn link_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(LINK_NAME_BYTES, 0);
    bytes
}

fn address_in(field: (Base, u32), subnet: Subnet) -> [Expression; 3] {
    let octets = |address: Ipv4Addr| address.octets().to_vec();
    [
        payload(field, 4, FIRST),
        mask(FIRST, octets(subnet.mask())),
        compare(FIRST, Operator::Equal, octets(subnet.network())),
    ]
}

fn meta(key: MetaKey, register: Register) -> Expression {
    Expressions::Meta(vec![Meta::DestinationRegister(register), Meta::Key(key)]).into()
}

fn payload((base, offset): (Base, u32), length: u32, register: Register) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base as u32),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
    .into()
}

fn compare(register: Register, operator: Operator, value: Vec<u8>) -> Expression {
    Expressions::Cmp(vec![Cmp::SourceRegister(register), Cmp::Op(operator), Cmp::Data(DataAttribute::Value(value))])
        .into()
}

/// Keeps the bits of `bits` in a register.
fn mask(register: Register, bits: Vec<u8>) -> Expression {
    let zeros = vec![0; bits.len()];
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(register),
        Bitwise::DestinationRegister(register),
        Bitwise::Length(bits.len() as u32),
        Bitwise::Mask(DataAttribute::Value(bits)),
        Bitwise::Xor(DataAttribute::Value(zeros)),
    ])
    .into()
}

/// Loads the kind of route that the destination has.
fn fib_destination_type(register: Register) -> Expression {
    const REGISTER: u16 = 1;
    const RESULT: u16 = 2;
    const FLAGS: u16 = 3;
    const RESULT_ADDRESS_TYPE: u32 = 3;
    const FLAG_DESTINATION: u32 = 1 << 1;
    other(
        "fib",
        vec![number(REGISTER, register.into()), number(RESULT, RESULT_ADDRESS_TYPE), number(FLAGS, FLAG_DESTINATION)],
    )
}

fn conntrack(key: Conntrack, register: Register) -> Expression {
    const REGISTER: u16 = 1;
    const KEY: u16 = 2;
    other("ct", vec![number(REGISTER, register.into()), number(KEY, key as u32)])
}

fn verdict(code: u32) -> Expression {
    let code = VerdictAttribute::Code(Verdict::Other(code));
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![code])),
    ])
    .into()
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expression {
    Expressions::Other { expression_type: name.to_owned(), attributes }.into()
}

/// nftables' numbers are big-endian.
fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}
