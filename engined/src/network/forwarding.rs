//! Other people's firewall: where the host's own FORWARD chain drops what it does not know, as Docker and ufw set it, our
//! table's accept does not help, and containers would reach nothing.
//!
//! So two rules are added there, tagged with the name of our table: what comes from our bridge and what goes to it is
//! accepted. What may go to the bridge is decided by our own table all the same, as a drop there is final. Frames between
//! two containers pass there too, where br_netfilter is on. Nothing else of other people's is touched, and the rules
//! are found again by their tag. [`legacy`] does the same in the tables of the time before nftables.

use super::error::{Attempt, Error};
use super::legacy;
use super::nft::expr::{self, Expression};
use super::nft::{Batch, ChainFacts, Family, Nft, Place, TaggedRule};

/// The table that `iptables` keeps in nftables.
pub(super) const TABLE: &str = "filter";
/// Docker's chain for rules that come before its own; it leaves them alone.
const DOCKER_USER: &str = "DOCKER-USER";
const FORWARD: &str = "FORWARD";

/// How many rules a bridge needs.
const RULES: usize = 2;

/// Makes our rules stand where they are needed, and nowhere else. Cheap when nothing is to be done.
pub(super) fn ensure(nft: &mut Nft, table: &str, bridge: &str) -> Result<(), Error> {
    let chains = nft.chains(Family::IPv4).attempt(|| "list the chains of nftables".to_owned())?;
    change(nft, table, bridge, needed_in(&chains))?;
    legacy::ensure(&tag(table), bridge, true)
}

/// Base chains in tables of others, beside those that [`ensure`] deals with, that drop what they do not accept: `family
/// table chain`. Whoever wrote them by hand must let our bridge pass by hand.
pub(super) fn strangers(nft: &mut Nft) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for (family, word) in [(Family::IPv4, "ip"), (Family::Inet, "inet")] {
        let chains = nft.chains(family).attempt(|| "list the chains of nftables".to_owned())?;
        let ours_to_deal_with = |chain: &ChainFacts| word == "ip" && chain.table == TABLE && chain.name == FORWARD;
        let dropping = chains
            .into_iter()
            .filter(|chain| chain.at_forward && chain.accepts == Some(false) && !ours_to_deal_with(chain));
        found.extend(dropping.map(|chain| format!("{word} {} {}", chain.table, chain.name)));
    }
    Ok(found)
}

/// Takes our rules back.
pub(super) fn remove(nft: &mut Nft, table: &str, bridge: &str) -> Result<(), Error> {
    change(nft, table, bridge, None)?;
    legacy::ensure(&tag(table), bridge, false)
}

fn change(nft: &mut Nft, table: &str, bridge: &str, wanted_in: Option<&str>) -> Result<(), Error> {
    let tag = tag(table);
    let rules = nft.tagged_rules(TABLE).attempt(|| format!("list the rules of table {TABLE}"))?;
    let present: Vec<TaggedRule> = rules.into_iter().filter(|rule| rule.comment == tag).collect();
    if is_right(&present, wanted_in) {
        return Ok(());
    }
    let mut batch = Batch::new(TABLE);
    for rule in &present {
        batch.delete_rule(&rule.chain, rule.handle);
    }
    if let Some(chain) = wanted_in {
        for rule in accepting(bridge) {
            batch.add_rule(chain, Place::First, Some(&tag), rule);
        }
    }
    nft.commit(batch).attempt(|| format!("change the rules of table {TABLE} that are tagged {tag:?}"))
}

/// The chain that needs our rules, if one does.
fn needed_in(chains: &[ChainFacts]) -> Option<&'static str> {
    let find = |name: &str| chains.iter().find(|chain| chain.table == TABLE && chain.name == name);
    if find(DOCKER_USER).is_some() {
        Some(DOCKER_USER)
    } else if find(FORWARD).is_some_and(|chain| chain.accepts == Some(false)) {
        Some(FORWARD)
    } else {
        None
    }
}

fn is_right(present: &[TaggedRule], wanted_in: Option<&str>) -> bool {
    match wanted_in {
        None => present.is_empty(),
        Some(chain) => present.len() == RULES && present.iter().all(|rule| rule.chain == chain),
    }
}

/// `iptables` shows them as `-i BRIDGE -j ACCEPT` and `-o BRIDGE -j ACCEPT`.
fn accepting(bridge: &str) -> [Vec<Expression>; RULES] {
    let rule = |condition: [Expression; 2]| condition.into_iter().chain([expr::counter(), expr::accept()]).collect();
    [rule(expr::incoming_link_is(bridge)), rule(expr::outgoing_link_is(bridge))]
}

fn tag(table: &str) -> String {
    format!("{table}: containers")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: &str, name: &str, accepts: Option<bool>) -> ChainFacts {
        ChainFacts { table: table.to_owned(), name: name.to_owned(), at_forward: true, accepts }
    }

    #[test]
    fn only_a_chain_that_drops_needs_us() {
        assert_eq!(needed_in(&[]), None);
        assert_eq!(needed_in(&[chain("filter", "FORWARD", Some(true))]), None);
        assert_eq!(needed_in(&[chain("mine", "FORWARD", Some(false))]), None);
        let dropping = chain("filter", "FORWARD", Some(false));
        assert_eq!(needed_in(std::slice::from_ref(&dropping)), Some("FORWARD"));
        assert_eq!(needed_in(&[dropping, chain("filter", "DOCKER-USER", None)]), Some("DOCKER-USER"));
    }
}
