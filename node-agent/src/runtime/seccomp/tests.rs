//! The compiled filter is run here by a small interpreter of the few instructions that it has, so that every rule is seen to
//! hold in the program that the kernel will get. A container that is really filtered is in the conformance suite.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | 1; // EPERM
const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | 38; // ENOSYS
const HERE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

fn capabilities(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What the program answers to a system call: `struct seccomp_data` is number, architecture, instruction pointer, arguments.
fn answer(program: &[sock_filter], architecture: u32, number: i64, first: u64) -> u32 {
    let mut data = [0_u8; 64];
    data[0..4].copy_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
    data[4..8].copy_from_slice(&architecture.to_le_bytes());
    data[16..24].copy_from_slice(&first.to_le_bytes());
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let step = &program[at];
        let jump = |yes: bool| usize::from(if yes { step.jt } else { step.jf });
        at += 1;
        match step.code {
            0x20 => {
                let offset = usize::try_from(step.k).unwrap();
                accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            0x54 => accumulator &= step.k,
            0x05 => at += usize::try_from(step.k).unwrap(),
            0x15 => at += jump(accumulator == step.k),
            0x25 => at += jump(accumulator > step.k),
            0x35 => at += jump(accumulator >= step.k),
            0x06 => return step.k,
            code => panic!("instruction {code:#x} is new to this test"),
        }
    }
}

fn default_answer(number: i64, first: u64) -> u32 {
    answer(&compile(&capabilities(&["CAP_SYS_CHROOT", "CAP_CHOWN"])).unwrap(), HERE, number, first)
}

#[rstest]
#[case::read(libc::SYS_read, 0, ALLOWED)]
#[case::write(libc::SYS_writev, 0, ALLOWED)]
#[case::chroot(libc::SYS_chroot, 0, ALLOWED)]
#[case::keyctl(libc::SYS_keyctl, 0, REFUSED)]
#[case::mount(libc::SYS_mount, 0, REFUSED)]
#[case::unshare(libc::SYS_unshare, 0, REFUSED)]
#[case::io_uring(libc::SYS_io_uring_setup, 0, REFUSED)]
#[case::bpf(libc::SYS_bpf, 0, REFUSED)]
#[case::userfaultfd(libc::SYS_userfaultfd, 0, REFUSED)]
#[case::clone3(libc::SYS_clone3, 0, NO_SUCH_CALL)]
#[case::fork(libc::SYS_clone, 0x0120_0011, ALLOWED)]
#[case::new_user_namespace(libc::SYS_clone, 0x1000_0011, REFUSED)]
#[case::new_mount_namespace(libc::SYS_clone, 0x0002_0000, REFUSED)]
#[case::linux(libc::SYS_personality, 0, ALLOWED)]
#[case::without_randomisation(libc::SYS_personality, 0x0004_0000, REFUSED)]
#[case::ask(libc::SYS_personality, 0xffff_ffff, ALLOWED)]
#[case::ask_with_sign(libc::SYS_personality, u64::MAX, ALLOWED)]
#[case::inet(libc::SYS_socket, 2, ALLOWED)]
#[case::netlink(libc::SYS_socket, 16, ALLOWED)]
#[case::vsock(libc::SYS_socket, 40, REFUSED)]
#[case::vsock_with_high_bits(libc::SYS_socket, 1 << 32 | 40, REFUSED)]
#[case::crypto(libc::SYS_socket, 38, REFUSED)]
#[case::beyond_all(5000, 0, REFUSED)]
fn the_default_filter(#[case] number: i64, #[case] first: u64, #[case] expected: u32) {
    assert_eq!(default_answer(number, first), expected);
}

#[test]
fn an_administrator_may_more() {
    let program = compile(&capabilities(&["CAP_SYS_ADMIN"])).unwrap();
    for number in [libc::SYS_mount, libc::SYS_clone3, libc::SYS_unshare] {
        assert_eq!(answer(&program, HERE, number, 0), ALLOWED);
    }
    assert_eq!(answer(&program, HERE, libc::SYS_clone, 0x1000_0011), ALLOWED);
    assert_eq!(answer(&program, HERE, libc::SYS_keyctl, 0), REFUSED);
    assert_eq!(answer(&program, HERE, libc::SYS_chroot, 0), REFUSED);
}

#[test]
fn another_architecture_ends_the_process() {
    let program = compile(&BTreeSet::new()).unwrap();
    assert_eq!(answer(&program, 0x4000_0003, libc::SYS_read, 0), libc::SECCOMP_RET_KILL_PROCESS);
}

/// And far below: how long it takes to load one grows with its length.
#[test]
fn the_program_fits_into_the_kernels_limit() {
    let all = super::super::capabilities::from_mask(u64::MAX);
    for set in [BTreeSet::new(), all] {
        let length = compile(&set).unwrap().len();
        assert!(length <= 256, "{length}");
    }
}

/// Every number that there is, and those beside them.
#[test]
fn the_program_says_of_each_system_call_what_the_rules_say() {
    let all = super::super::capabilities::from_mask(u64::MAX);
    for set in [BTreeSet::new(), capabilities(&["CAP_SYS_CHROOT"]), all] {
        let program = compile(&set).unwrap();
        let verdicts: BTreeMap<i64, Verdict> =
            verdicts(&set).into_iter().map(|(syscall, verdict)| (syscall.number, verdict)).collect();
        for number in (0..1024).chain([0x4000_0000, 0x4000_0001, 0x7fff_ffff]) {
            let expected = match verdicts.get(&number) {
                Some(Verdict::Allow) => ALLOWED,
                None if number == syscalls::CLONE3.number => NO_SUCH_CALL,
                None => REFUSED,
                Some(Verdict::OneOf(_) | Verdict::NoneOf(_) | Verdict::Without(_)) => continue,
            };
            assert_eq!(answer(&program, HERE, number, 0), expected, "{number}");
        }
    }
}

#[test]
fn the_profile_says_the_same_for_other_runtimes() {
    let profile = profile(&capabilities(&["CAP_SYS_CHROOT"]));
    let rules = profile["syscalls"].as_array().unwrap();
    let with = |name: &str| -> Vec<&Value> {
        rules.iter().filter(|rule| rule["names"].as_array().unwrap().contains(&json!(name))).collect()
    };
    assert_eq!(with("read").len(), 1);
    assert_eq!(with("personality").len(), PERSONALITIES.len());
    assert_eq!(with("socket")[0]["args"].as_array().unwrap().len(), 2);
    assert_eq!(with("clone")[0]["args"][0]["op"], "SCMP_CMP_MASKED_EQ");
    assert_eq!(with("clone3")[0]["errnoRet"], 38);
    assert!(with("mount").is_empty());
}

#[test]
fn no_system_call_is_listed_twice() {
    let mut seen = BTreeSet::new();
    for syscall in syscalls::ALWAYS.iter().chain(syscalls::ALWAYS_HERE) {
        assert!(seen.insert(syscall.number), "{} is listed twice", syscall.name);
        assert!(![syscalls::CLONE, syscalls::SOCKET, syscalls::PERSONALITY].contains(syscall));
    }
}

proptest! {
    #[test]
    fn a_capability_never_takes_anything_away(
        number in 0_i64..480, first in any::<u64>(), mask in any::<u64>(), more in any::<u64>()
    ) {
        let less = super::super::capabilities::from_mask(mask);
        let more = super::super::capabilities::from_mask(mask | more);
        if answer(&compile(&less).unwrap(), HERE, number, first) == ALLOWED {
            prop_assert_eq!(answer(&compile(&more).unwrap(), HERE, number, first), ALLOWED);
        }
    }
}
