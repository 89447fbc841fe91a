//! Users: what `--user` says, and what the image's passwd and group make of it. Pure.
//!
//! A number is a number: it is never looked up as a name, so that an image whose passwd has a user *named* "1000" with
//! uid 0 gains nothing (CVE-2016-3697, CVE-2026-46680). It is bounded, so that it cannot wrap to 0 (CVE-2024-40635). The
//! primary group is among the supplementary ones, so that permissions which are denied to it cannot be got around
//! (CVE-2022-36109).

use serde::{Deserialize, Serialize};

use crate::engine::error::{Error, Field};

/// Largest id, as Docker has it: ids are signed in too many places.
const ID_MAX: u32 = i32::MAX as u32;

/// `uid|name[:gid|group]`, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct UserSpec {
    user: Who,
    group: Option<Who>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Id(u32),
    Name(String),
}

impl Who {
    fn parse(what: &'static str, text: &str) -> Result<Who, Error> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
            let number = text.parse::<u32>().ok().filter(|number| *number <= ID_MAX);
            return number.map(Who::Id).ok_or_else(|| Error::UserOutOfRange { what, number: text.to_owned() });
        }
        let is_name = |byte: u8| byte.is_ascii_graphic() && byte != b':' && byte != b',';
        if !text.is_empty() && text.len() <= 255 && text.bytes().all(is_name) {
            Ok(Who::Name(text.to_owned()))
        } else {
            Err(Error::invalid(Field::User, text, "uid or name, optionally :gid or :group"))
        }
    }
}

impl UserSpec {
    /// Reads a user. Nothing before the colon is root, as Docker has it.
    pub(crate) fn parse(text: &str) -> Result<UserSpec, Error> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (text, None),
        };
        Ok(UserSpec {
            user: if user.is_empty() { Who::Id(0) } else { Who::parse("uid", user)? },
            group: group.map(|group| Who::parse("gid", group)).transpose()?,
        })
    }
}

impl TryFrom<String> for UserSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<UserSpec, Error> {
        UserSpec::parse(&text)
    }
}

impl From<UserSpec> for String {
    fn from(spec: UserSpec) -> String {
        let word = |who: Who| match who {
            Who::Id(id) => id.to_string(),
            Who::Name(name) => name,
        };
        match spec.group {
            Some(group) => format!("{}:{}", word(spec.user), word(group)),
            None => word(spec.user),
        }
    }
}

/// Who a program runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// With the primary group.
    pub(crate) groups: Vec<u32>,
    /// The home directory, where passwd names one.
    pub(crate) home: Option<String>,
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// passwd(5). A line that is none is passed over, as getpwent does.
fn passwd(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or_default();
        let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id <= ID_MAX);
        (!name.is_empty()).then_some(Entry { name, uid: id(uid)?, gid: id(gid)?, home })
    })
}

/// group(5): name, gid, members.
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        let gid = gid.parse::<u32>().ok().filter(|gid| *gid <= ID_MAX)?;
        (!name.is_empty()).then_some((name, gid, fields.next().unwrap_or_default()))
    })
}

/// Who `spec` is in an image with these files; each is empty where the image has none. `image` is for the refusal.
pub(crate) fn resolve(spec: &UserSpec, passwd_text: &str, group_text: &str, image: &str) -> Result<User, Error> {
    let entry = match &spec.user {
        Who::Id(uid) => passwd(passwd_text).find(|entry| entry.uid == *uid),
        Who::Name(name) => {
            Some(passwd(passwd_text).find(|entry| entry.name == name).ok_or_else(|| unknown("user", name, image))?)
        }
    };
    let uid = match (&spec.user, &entry) {
        (Who::Id(uid), _) => *uid,
        (Who::Name(_), Some(entry)) => entry.uid,
        (Who::Name(name), None) => return Err(unknown("user", name, image)),
    };
    let home = entry.as_ref().map(|entry| entry.home.to_owned()).filter(|home| home.starts_with('/'));
    let (gid, others) = match &spec.group {
        Some(Who::Id(gid)) => (*gid, Vec::new()),
        Some(Who::Name(name)) => {
            let found = groups(group_text).find(|(known, _, _)| known == name);
            (found.ok_or_else(|| unknown("group", name, image))?.1, Vec::new())
        }
        None => {
            let name = entry.as_ref().map(|entry| entry.name);
            (entry.as_ref().map_or(0, |entry| entry.gid), memberships(group_text, name))
        }
    };
    Ok(User { uid, gid, groups: with_primary(gid, others), home })
}

fn unknown(what: &'static str, name: &str, image: &str) -> Error {
    Error::UserUnknown { what, name: name.to_owned(), image: image.to_owned() }
}

/// The groups whose member lists name the user.
fn memberships(group_text: &str, name: Option<&str>) -> Vec<u32> {
    let Some(name) = name else { return Vec::new() };
    let is_member = |members: &str| members.split(',').any(|member| member == name);
    groups(group_text).filter(|(_, _, members)| is_member(members)).map(|(_, gid, _)| gid).collect()
}

fn with_primary(gid: u32, others: Vec<u32>) -> Vec<u32> {
    let mut all = vec![gid];
    for other in others {
        if !all.contains(&other) {
            all.push(other);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv:/bin/false\n1000:x:0:0::/:/bin/sh\nbad\n\
                          odd:x:99999999999:0::/:\nnohome:x:7:7::relative:\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nadm:x:4:web,root\nwheel:x:10:root\n";

    fn who(text: &str) -> Result<User, Error> {
        resolve(&UserSpec::parse(text)?, PASSWD, GROUP, "busybox")
    }

    fn ids(text: &str) -> (u32, u32, Vec<u32>) {
        let user = who(text).unwrap();
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(ids("root"), (0, 0, vec![0, 4, 10]));
        assert_eq!(ids(""), (0, 0, vec![0, 4, 10]));
        assert_eq!(ids("0"), (0, 0, vec![0, 4, 10]));
        assert_eq!(ids("web"), (101, 102, vec![102, 4]));
        assert_eq!(ids("101"), (101, 102, vec![102, 4]));
        assert_eq!(ids("web:adm"), (101, 4, vec![4]));
        assert_eq!(ids("web:5"), (101, 5, vec![5]));
        assert_eq!(ids("web:"), (101, 102, vec![102, 4]));
        assert_eq!(ids("12345"), (12345, 0, vec![0]));
        assert_eq!(ids(":1"), (0, 1, vec![1]));
        assert_eq!(who("web").unwrap().home.as_deref(), Some("/srv"));
        assert_eq!(who("nohome").unwrap().home, None);
    }

    #[test]
    fn a_number_is_never_a_name() {
        assert_eq!(ids("1000"), (1000, 0, vec![0]));
    }

    #[test]
    fn what_is_out_of_range_never_wraps() {
        for text in ["4294967296", "2147483648", "4294967295", "99999999999999999999", "1:2147483648"] {
            assert!(matches!(UserSpec::parse(text), Err(Error::UserOutOfRange { .. })), "{text}");
        }
        assert_eq!(ids("2147483647").0, 2_147_483_647);
    }

    #[test]
    fn strange_words_are_no_user() {
        for text in ["+1", "0x1", "-1", "1x", "nobody", "odd"] {
            assert!(matches!(who(text), Err(Error::UserUnknown { .. })), "{text}");
        }
        for text in [" 1", "1 ", "a b", "a:b:c", "a,b", "\n"] {
            assert!(matches!(who(text), Err(Error::Invalid { .. })), "{text:?}");
        }
        assert!(matches!(who("web:nobody"), Err(Error::UserUnknown { what: "group", .. })));
    }

    #[test]
    fn an_image_without_the_files_knows_numbers() {
        let user = resolve(&UserSpec::parse("5:6").unwrap(), "", "", "x").unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (5, 6, vec![6]));
        assert!(resolve(&UserSpec::parse("root").unwrap(), "", "", "x").is_err());
        assert!(resolve(&UserSpec::parse("0").unwrap(), "", "", "x").is_ok());
    }

    proptest! {
        #[test]
        fn any_files_are_survived(passwd in "[a-z0-9:,\n ]{0,80}", group in "[a-z0-9:,\n ]{0,80}", spec in "[a-z0-9:]{0,6}") {
            if let Ok(spec) = UserSpec::parse(&spec) {
                if let Ok(user) = resolve(&spec, &passwd, &group, "x") {
                    prop_assert!(user.groups.contains(&user.gid));
                    prop_assert!(user.uid <= ID_MAX && user.gid <= ID_MAX);
                }
                prop_assert_eq!(UserSpec::parse(&String::from(spec.clone())).unwrap(), spec);
            }
        }
    }
}
