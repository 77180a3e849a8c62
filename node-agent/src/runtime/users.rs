//! Who a container's process runs as: the pod's security context, the image's `USER`, and the image's own `/etc/passwd` and
//! `/etc/group`, by the rules of a kubelet with containerd.
//!
//! Pure: no I/O, no clock, no randomness.

use super::{GroupsPolicy, SecuritySpec};

/// The numbers that the process gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessUser {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All other groups, the primary one among them, in ascending order.
    pub additional_gids: Vec<u32>,
}

/// The user cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The pod wants anybody but root, and this would be root.
    #[error("container has runAsNonRoot and image will run as root")]
    Root,
    /// The pod wants anybody but root by number, and this is root.
    #[error("container's runAsUser breaks non-root policy")]
    RootByNumber,
    /// The pod wants anybody but root, and a name does not tell.
    #[error("container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root")]
    NotVerifiable(String),
    /// The image names a user that it does not have.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoSuchUser(String),
    /// The image names a group that it does not have.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoSuchGroup(String),
}

impl UserError {
    /// The kubelet's reason for a container that waits because of this.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Root | Self::RootByNumber | Self::NotVerifiable(_) => "CreateContainerConfigError",
            Self::NoSuchUser(_) | Self::NoSuchGroup(_) => "CreateContainerError",
        }
    }
}

/// Finds the user for a container. `passwd` and `group` are the contents of the image's files, empty where it has none.
///
/// # Errors
/// When the pod forbids the user, or the image does not know it.
pub fn resolve(security: &SecuritySpec, image_user: &str, passwd: &str, group: &str) -> Result<ProcessUser, UserError> {
    verify_non_root(security, image_user)?;
    let (user, group_part) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image_user, None),
    };
    let account = match security.run_as_user {
        Some(uid) => Account::by_uid(passwd, uid),
        None if user.is_empty() => Account::by_uid(passwd, 0),
        None => match user.parse() {
            Ok(uid) => Account::by_uid(passwd, uid),
            Err(_) => Account::by_name(passwd, user).ok_or_else(|| UserError::NoSuchUser(user.to_owned()))?,
        },
    };
    // The group behind the image's user means nothing for a user that the pod chose.
    let named_group = group_part.filter(|name| !name.is_empty() && security.run_as_user.is_none());
    let gid = match (security.run_as_group, named_group) {
        (Some(gid), _) => gid,
        (None, Some(name)) => group_id(group, name)?,
        (None, None) => account.gid,
    };
    let mut additional_gids = vec![gid];
    match (security.groups_policy, &account.name) {
        (GroupsPolicy::Merge, Some(name)) => additional_gids.extend(groups_of(group, name)),
        (GroupsPolicy::Merge, None) | (GroupsPolicy::Strict, _) => {}
    }
    additional_gids.extend(&security.supplemental_groups);
    additional_gids.sort_unstable();
    additional_gids.dedup();
    Ok(ProcessUser { uid: account.uid, gid, additional_gids })
}

fn verify_non_root(security: &SecuritySpec, image_user: &str) -> Result<(), UserError> {
    if !security.run_as_non_root {
        return Ok(());
    }
    match security.run_as_user {
        Some(0) => return Err(UserError::RootByNumber),
        Some(_) => return Ok(()),
        None => {}
    }
    let user = image_user.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(0) => Err(UserError::Root),
        Ok(_) => Ok(()),
        Err(_) if user.is_empty() => Err(UserError::Root),
        Err(_) => Err(UserError::NotVerifiable(user.to_owned())),
    }
}

/// A line of the passwd file, or what stands for a user that has none.
struct Account {
    name: Option<String>,
    uid: u32,
    gid: u32,
}

impl Account {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?.trim();
        let (uid, gid) = (fields.nth(1)?, fields.next()?);
        Some(Self { name: Some(name.to_owned()), uid: uid.trim().parse().ok()?, gid: gid.trim().parse().ok()? })
    }

    fn by_uid(passwd: &str, uid: u32) -> Self {
        let known = passwd.lines().filter_map(Self::parse).find(|account| account.uid == uid);
        known.unwrap_or(Self { name: None, uid, gid: 0 })
    }

    fn by_name(passwd: &str, name: &str) -> Option<Self> {
        passwd.lines().filter_map(Self::parse).find(|account| account.name.as_deref() == Some(name))
    }
}

/// Name, number and members of each line of the group file that is one.
fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.trim();
        let gid = fields.nth(1)?.trim().parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn group_id(group: &str, name: &str) -> Result<u32, UserError> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    let known = group_lines(group).find(|(other, ..)| *other == name);
    known.map(|(_, gid, _)| gid).ok_or_else(|| UserError::NoSuchGroup(name.to_owned()))
}

fn groups_of<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    let member = move |members: &str| members.split(',').any(|member| member.trim() == user);
    group_lines(group).filter(move |(_, _, members)| member(members)).map(|(_, gid, _)| gid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nnginx:x:101:102:nginx:/:/bin/false\nnobody:x:65534:65534::/:\n";
    const GROUP: &str = "root:x:0:\naudio:x:29:nginx,other\nnginx:x:102:\nstaff:x:50:nginx\n";

    fn user(uid: u32, gid: u32, additional_gids: &[u32]) -> ProcessUser {
        ProcessUser { uid, gid, additional_gids: additional_gids.to_vec() }
    }

    #[rstest]
    #[case::nothing_said("", user(0, 0, &[0]))]
    #[case::a_name("nginx", user(101, 102, &[29, 50, 102]))]
    #[case::a_known_number("101", user(101, 102, &[29, 50, 102]))]
    #[case::an_unknown_number("4711", user(4711, 0, &[0]))]
    #[case::a_name_and_a_group("nginx:audio", user(101, 29, &[29, 50]))]
    #[case::numbers("1000:1001", user(1000, 1001, &[1001]))]
    #[case::an_empty_group("nginx:", user(101, 102, &[29, 50, 102]))]
    fn the_image_names_the_user(#[case] image_user: &str, #[case] expected: ProcessUser) {
        assert_eq!(resolve(&SecuritySpec::default(), image_user, PASSWD, GROUP), Ok(expected));
    }

    #[test]
    fn the_pod_overrides_the_image() {
        let mut security = SecuritySpec { run_as_user: Some(101), ..SecuritySpec::default() };
        assert_eq!(resolve(&security, "root:audio", PASSWD, GROUP), Ok(user(101, 102, &[29, 50, 102])));
        security.run_as_group = Some(7);
        security.supplemental_groups = vec![2000, 29];
        assert_eq!(resolve(&security, "root", PASSWD, GROUP), Ok(user(101, 7, &[7, 29, 50, 2000])));
        security.run_as_user = Some(4711);
        assert_eq!(resolve(&security, "unknown", "", ""), Ok(user(4711, 7, &[7, 29, 2000])));
    }

    #[test]
    fn the_images_groups_do_not_count_where_the_pod_is_strict() {
        let security = SecuritySpec {
            supplemental_groups: vec![2000],
            groups_policy: GroupsPolicy::Strict,
            ..SecuritySpec::default()
        };
        assert_eq!(resolve(&security, "nginx", PASSWD, GROUP), Ok(user(101, 102, &[102, 2000])));
    }

    #[test]
    fn a_name_that_the_image_does_not_have_is_an_error() {
        let security = SecuritySpec::default();
        assert_eq!(resolve(&security, "ghost", PASSWD, GROUP), Err(UserError::NoSuchUser("ghost".into())));
        assert_eq!(resolve(&security, "nginx:ghosts", PASSWD, GROUP), Err(UserError::NoSuchGroup("ghosts".into())));
        assert_eq!(UserError::NoSuchUser(String::new()).reason(), "CreateContainerError");
    }

    #[rstest]
    #[case::root_by_default(None, "", Err(UserError::Root))]
    #[case::root_by_number(None, "0:5", Err(UserError::Root))]
    #[case::a_name(None, "nginx", Err(UserError::NotVerifiable("nginx".into())))]
    #[case::a_number(None, "101", Ok(101))]
    #[case::the_pod_says_root(Some(0), "101", Err(UserError::RootByNumber))]
    #[case::the_pod_says_somebody(Some(5), "", Ok(5))]
    fn non_root_is_verified(
        #[case] run_as_user: Option<u32>,
        #[case] image_user: &str,
        #[case] expected: Result<u32, UserError>,
    ) {
        let security = SecuritySpec { run_as_user, run_as_non_root: true, ..SecuritySpec::default() };
        assert_eq!(resolve(&security, image_user, PASSWD, GROUP).map(|user| user.uid), expected);
    }

    proptest! {
        #[test]
        fn no_content_of_the_image_can_break_us(
            image_user in ".{0,12}", passwd in ".{0,200}", group in ".{0,200}", non_root in any::<bool>()
        ) {
            let security = SecuritySpec { run_as_non_root: non_root, ..SecuritySpec::default() };
            if let Ok(user) = resolve(&security, &image_user, &passwd, &group) {
                prop_assert!(user.additional_gids.contains(&user.gid));
                prop_assert!(!non_root || user.uid != 0);
            }
        }
    }
}
