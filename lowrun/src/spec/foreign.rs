//! The sections of config.json for other platforms: nothing in them is acted upon, but a value that is none of its field's is
//! refused, as by runc. A document that has one was not written for what reads it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};

/// What a field may hold; null may stand for everything.
#[derive(Clone, Copy)]
enum Kind {
    Any,
    Bool,
    Text,
    Signed,
    /// A number up to this one.
    Unsigned(u64),
    List(&'static Kind),
    Object(&'static [(&'static str, Kind)]),
}

use Kind::{Any, Bool, List, Object, Signed, Text};

const U16: Kind = Kind::Unsigned(0xffff);
const U32: Kind = Kind::Unsigned(0xffff_ffff);
const U64: Kind = Kind::Unsigned(u64::MAX);
const TEXTS: Kind = List(&Text);

const SOLARIS: Kind = Object(&[
    ("milestone", Text),
    ("limitpriv", Text),
    ("maxShmMemory", Text),
    ("anet", List(&SOLARIS_NET)),
    ("cappedCPU", Object(&[("ncpus", Text)])),
    ("cappedMemory", Object(&[("physical", Text), ("swap", Text)])),
]);

const SOLARIS_NET: Kind = Object(&[
    ("linkname", Text),
    ("lowerLink", Text),
    ("allowedAddress", Text),
    ("configureAllowedAddress", Text),
    ("defrouter", Text),
    ("linkProtection", Text),
    ("macAddress", Text),
]);

const WINDOWS: Kind = Object(&[
    ("layerFolders", TEXTS),
    ("devices", List(&Object(&[("id", Text), ("idType", Text)]))),
    ("resources", WINDOWS_RESOURCES),
    ("credentialSpec", Any),
    ("servicing", Bool),
    ("ignoreFlushesDuringBoot", Bool),
    ("hyperv", Object(&[("utilityVMPath", Text)])),
    ("network", WINDOWS_NETWORK),
]);

const WINDOWS_RESOURCES: Kind = Object(&[
    ("memory", Object(&[("limit", U64)])),
    ("cpu", WINDOWS_CPU),
    ("storage", Object(&[("iops", U64), ("bps", U64), ("sandboxSize", U64)])),
]);

const WINDOWS_CPU: Kind = Object(&[
    ("count", U64),
    ("shares", U16),
    ("maximum", U16),
    ("affinity", List(&Object(&[("mask", U64), ("group", U32)]))),
]);

const WINDOWS_NETWORK: Kind = Object(&[
    ("endpointList", TEXTS),
    ("allowUnqualifiedDNSQuery", Bool),
    ("DNSSearchList", TEXTS),
    ("networkSharedContainerName", Text),
    ("networkNamespace", Text),
]);

const VM: Kind = Object(&[
    ("hypervisor", Object(&[("path", Text), ("parameters", TEXTS)])),
    ("kernel", Object(&[("path", Text), ("parameters", TEXTS), ("initrd", Text)])),
    ("image", Object(&[("path", Text), ("format", Text)])),
    ("hwconfig", VM_HARDWARE),
]);

const VM_HARDWARE: Kind = Object(&[
    ("deviceTree", Text),
    ("vcpus", U32),
    ("memory", U64),
    ("dtdevs", TEXTS),
    ("iomems", List(&Object(&[("firstGFN", U64), ("firstMFN", U64), ("nrMFNs", U64)]))),
    ("irqs", List(&U32)),
]);

const ZOS: Kind = Object(&[("namespaces", List(&Object(&[("type", Text), ("path", Text)])))]);

const FREEBSD: Kind = Object(&[("devices", List(&Object(&[("path", Text), ("mode", U32)]))), ("jail", FREEBSD_JAIL)]);

const FREEBSD_JAIL: Kind = Object(&[
    ("parent", Text),
    ("host", Text),
    ("ip4", Text),
    ("ip4Addr", TEXTS),
    ("ip6", Text),
    ("ip6Addr", TEXTS),
    ("vnet", Text),
    ("interface", Text),
    ("vnetInterfaces", TEXTS),
    ("sysvmsg", Text),
    ("sysvsem", Text),
    ("sysvshm", Text),
    ("enforceStatfs", Signed),
    ("allow", FREEBSD_ALLOW),
]);

const FREEBSD_ALLOW: Kind = Object(&[
    ("setHostname", Bool),
    ("rawSockets", Bool),
    ("chflags", Bool),
    ("mount", TEXTS),
    ("quotas", Bool),
    ("socketAf", Bool),
    ("mlock", Bool),
    ("reservedPorts", Bool),
    ("suser", Bool),
]);

pub(super) fn solaris<'de, D: Deserializer<'de>>(section: D) -> Result<(), D::Error> {
    SOLARIS.deserialize(section)
}

pub(super) fn windows<'de, D: Deserializer<'de>>(section: D) -> Result<(), D::Error> {
    WINDOWS.deserialize(section)
}

pub(super) fn vm<'de, D: Deserializer<'de>>(section: D) -> Result<(), D::Error> {
    VM.deserialize(section)
}

pub(super) fn zos<'de, D: Deserializer<'de>>(section: D) -> Result<(), D::Error> {
    ZOS.deserialize(section)
}

pub(super) fn freebsd<'de, D: Deserializer<'de>>(section: D) -> Result<(), D::Error> {
    FREEBSD.deserialize(section)
}

impl<'de> DeserializeSeed<'de> for Kind {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Kind {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Any => formatter.write_str("anything"),
            Bool => formatter.write_str("a boolean"),
            Text => formatter.write_str("a string"),
            Signed => formatter.write_str("an integer"),
            Kind::Unsigned(most) => write!(formatter, "an integer from 0 to {most}"),
            List(_) => formatter.write_str("a list"),
            Object(_) => formatter.write_str("an object"),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        match self {
            Any | Bool => Ok(()),
            _ => Err(E::invalid_type(Unexpected::Bool(value), &self)),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        match self {
            Any | Signed => Ok(()),
            _ => Err(E::invalid_type(Unexpected::Signed(value), &self)),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match self {
            Any => Ok(()),
            Signed if i64::try_from(value).is_ok() => Ok(()),
            Kind::Unsigned(most) if value <= most => Ok(()),
            _ => Err(E::invalid_type(Unexpected::Unsigned(value), &self)),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        match self {
            Any => Ok(()),
            _ => Err(E::invalid_type(Unexpected::Float(value), &self)),
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        match self {
            Any | Text => Ok(()),
            _ => Err(E::invalid_type(Unexpected::Str(value), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        let kind = match self {
            Any => Any,
            List(kind) => *kind,
            _ => return Err(Error::invalid_type(Unexpected::Seq, &self)),
        };
        while values.next_element_seed(kind)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        let fields = match self {
            Any => &[],
            Object(fields) => fields,
            _ => return Err(Error::invalid_type(Unexpected::Map, &self)),
        };
        while let Some(key) = values.next_key::<String>()? {
            match fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(&key)) {
                Some((_, kind)) => values.next_value_seed(*kind)?,
                None => values.next_value::<IgnoredAny>().map(drop)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::{Spec, any_case};

    #[test]
    fn what_is_none_of_its_fields_is_refused_by_its_name() {
        for (text, field) in [
            (r#"{"windows":{"resources":{"cpu":{"shares":70000}}}}"#, "windows.resources.cpu.shares"),
            (r#"{"windows":{"layerFolders":["a",7]}}"#, "windows.layerFolders[1]"),
            (r#"{"windows":{"Servicing":"yes"}}"#, "windows.Servicing"),
            (r#"{"solaris":{"cappedCPU":[]}}"#, "solaris.cappedCPU"),
            (r#"{"vm":{"hwconfig":{"irqs":[-1]}}}"#, "vm.hwconfig.irqs[0]"),
            (r#"{"vm":{"hwconfig":{"memory":1.5}}}"#, "vm.hwconfig.memory"),
            (r#"{"zos":7}"#, "zos"),
            (r#"{"freebsd":{"jail":{"enforceStatfs":9223372036854775808}}}"#, "freebsd.jail.enforceStatfs"),
            (r#"{"freebsd":{"jail":{"allow":{"suser":{}}}}}"#, "freebsd.jail.allow.suser"),
        ] {
            let error = any_case::from_str::<Spec>(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: invalid type")), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_its_fields_or_nobodys_is_passed_over() {
        for text in [
            r#"{"windows":{"credentialSpec":{"a":[1.5,null,{}]},"layerFolders":["a"],"future":[{}]},"solaris":null}"#,
            r#"{"vm":{"hwconfig":{"vcpus":4294967295,"irqs":[1,null]}},"zos":{"namespaces":[{"type":"a"}]}}"#,
            r#"{"freebsd":{"jail":{"enforceStatfs":-1,"allow":{"suser":true}}}}"#,
        ] {
            any_case::from_str::<Spec>(text).unwrap();
        }
    }
}
