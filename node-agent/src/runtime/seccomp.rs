//! The default system call filter: what containerd's default profile allows, as data of our own, in the two forms that
//! runtimes take.
//!
//! crun loads a compiled program as it is, which costs nothing; compiling a profile with libseccomp costs 15 ms at every start.
//! The program knows the host's own architecture only: a 32-bit program on a 64-bit host is ended by it.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};
use serde_json::{Value, json};

use super::syscalls::{self, Syscall};

/// The flags of clone that make a namespace: for those who may not administer the system.
const NAMESPACE_FLAGS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u64;

/// The execution domains that `personality` may set: Linux, with or without its two harmless flags, and "only ask".
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The socket families that reach past the container: the hypervisor's, and the kernel's crypto.
const FORBIDDEN_FAMILIES: [u64; 2] = [libc::AF_ALG as u64, libc::AF_VSOCK as u64];

/// A filter cannot be compiled for this host.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// There is no compiler for this architecture.
    #[error("compile the system call filter for {architecture}")]
    Compile {
        /// As Rust names it.
        architecture: &'static str,
        /// Why not.
        source: seccompiler::BackendError,
    },
    /// The compiled program is not built as we know it, so that rules of ours have no place.
    #[error("find the place for further rules in the compiled filter")]
    Shape,
}

/// What the rules say of one system call.
enum Verdict {
    Allow,
    /// The first argument, in 32 bits, must be one of these.
    OneOf(&'static [u64]),
    /// The first argument, in 32 bits, must be none of these.
    NoneOf(&'static [u64]),
    /// None of these bits may be set in the first argument.
    Without(u64),
}

/// The default filter for a container with these capabilities as a program in base64, as crun takes it.
///
/// # Errors
/// When there is no compiler for this architecture.
pub fn program(capabilities: &BTreeSet<String>) -> Result<String, SeccompError> {
    let bytes: Vec<u8> = compile(capabilities)?.iter().flat_map(instruction_bytes).collect();
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// The default filter for a container with these capabilities as a profile, for runtimes that compile it themselves.
pub fn profile(capabilities: &BTreeSet<String>) -> Value {
    let mut plain = Vec::new();
    let mut rules = Vec::new();
    let mut rule = |name: &str, args: Vec<Value>| {
        rules.push(json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": args }));
    };
    for (syscall, verdict) in verdicts(capabilities) {
        let first = |op: &str, value: u64| json!({ "index": 0, "value": value, "op": op });
        match verdict {
            Verdict::Allow => plain.push(syscall.name),
            Verdict::OneOf(values) => {
                values.iter().for_each(|value| rule(syscall.name, vec![first("SCMP_CMP_EQ", *value)]))
            }
            Verdict::NoneOf(values) => {
                rule(syscall.name, values.iter().map(|value| first("SCMP_CMP_NE", *value)).collect());
            }
            Verdict::Without(bits) => {
                let masked = json!({ "index": 0, "value": bits, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" });
                rule(syscall.name, vec![masked]);
            }
        }
    }
    rules.push(json!({ "names": plain, "action": "SCMP_ACT_ALLOW" }));
    if !may_administer(capabilities) {
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS }));
    }
    json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": libc::EPERM, "syscalls": rules })
}

fn may_administer(capabilities: &BTreeSet<String>) -> bool {
    capabilities.contains("CAP_SYS_ADMIN")
}

/// All system calls that are not refused outright.
fn verdicts(capabilities: &BTreeSet<String>) -> Vec<(Syscall, Verdict)> {
    let mut verdicts: BTreeMap<i64, (Syscall, Verdict)> = BTreeMap::new();
    let mut set = |syscall: &Syscall, verdict| {
        verdicts.insert(syscall.number, (*syscall, verdict));
    };
    for syscall in syscalls::ALWAYS.iter().chain(syscalls::ALWAYS_HERE).chain([&syscalls::IO_PGETEVENTS]) {
        set(syscall, Verdict::Allow);
    }
    set(&syscalls::PERSONALITY, Verdict::OneOf(&PERSONALITIES));
    set(&syscalls::SOCKET, Verdict::NoneOf(&FORBIDDEN_FAMILIES));
    set(&syscalls::CLONE, Verdict::Without(NAMESPACE_FLAGS));
    for (_, extra) in syscalls::BY_CAPABILITY.iter().filter(|(name, _)| capabilities.contains(*name)) {
        extra.iter().for_each(|syscall| set(syscall, Verdict::Allow));
    }
    verdicts.into_values().collect()
}

fn compile(capabilities: &BTreeSet<String>) -> Result<BpfProgram, SeccompError> {
    let architecture = std::env::consts::ARCH;
    let failed = |source| SeccompError::Compile { architecture, source };
    let (mut rules, mut plain) = (BTreeMap::new(), BTreeSet::new());
    for (syscall, verdict) in verdicts(capabilities) {
        let conditions = chain(&verdict).map_err(failed)?;
        if conditions.is_empty() {
            plain.insert(syscall.number);
        } else {
            rules.insert(syscall.number, conditions);
        }
    }
    let target = architecture.try_into().map_err(failed)?;
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, target).map_err(failed)?;
    let mut program = BpfProgram::try_from(filter).map_err(failed)?;
    allow(&mut program, &plain)?;
    if !may_administer(capabilities) {
        refuse_clone3(&mut program)?;
    }
    Ok(program)
}

/// The rules for one system call, of which one has to fit. None at all fits always.
fn chain(verdict: &Verdict) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let first = |op, value| SeccompCondition::new(0, SeccompCmpArgLen::Dword, op, value);
    match verdict {
        Verdict::Allow => Ok(Vec::new()),
        Verdict::OneOf(values) => {
            values.iter().map(|value| SeccompRule::new(vec![first(SeccompCmpOp::Eq, *value)?])).collect()
        }
        Verdict::NoneOf(values) => {
            let conditions: Result<Vec<_>, _> = values.iter().map(|value| first(SeccompCmpOp::Ne, *value)).collect();
            Ok(vec![SeccompRule::new(conditions?)?])
        }
        Verdict::Without(bits) => Ok(vec![SeccompRule::new(vec![first(SeccompCmpOp::MaskedEq(*bits), 0)?])?]),
    }
}

/// How many instructions come before the first system call is looked at: load the architecture, compare it, end the process
/// if it is another, load the number of the system call.
const PROLOGUE: usize = 4;

/// BPF_LD | BPF_W | BPF_ABS, with which `seccomp_data.nr` (offset 0) is loaded.
const LOAD: u16 = 0x20;
/// BPF_JMP | BPF_JEQ | BPF_K
const JUMP_IF_EQUAL: u16 = 0x15;
/// BPF_JMP | BPF_JGT | BPF_K
const JUMP_IF_GREATER: u16 = 0x25;
/// BPF_JMP | BPF_JGE | BPF_K
const JUMP_IF_NOT_LESS: u16 = 0x35;
/// BPF_RET | BPF_K
const RETURN: u16 = 0x06;

/// Lets through the system calls of these numbers, a range at a time. The compiler would compare one number after the other, and
/// the kernel runs a filter for each number there is when it is loaded, which takes a millisecond then.
fn allow(program: &mut BpfProgram, numbers: &BTreeSet<i64>) -> Result<(), SeccompError> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        let number = u32::try_from(*number).map_err(|_| SeccompError::Shape)?;
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let steps = ranges.into_iter().flat_map(|(first, last)| {
        [
            sock_filter { code: JUMP_IF_NOT_LESS, jt: 0, jf: 2, k: first },
            sock_filter { code: JUMP_IF_GREATER, jt: 1, jf: 0, k: last },
            sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
        ]
    });
    insert(program, steps)
}

/// Puts steps where the number of the system call has just been loaded. All jumps are relative and forward, so that nothing
/// else changes.
fn insert(program: &mut BpfProgram, steps: impl IntoIterator<Item = sock_filter>) -> Result<(), SeccompError> {
    if !program.get(PROLOGUE - 1).is_some_and(|load| load.code == LOAD && load.k == 0) {
        return Err(SeccompError::Shape);
    }
    program.splice(PROLOGUE..PROLOGUE, steps);
    Ok(())
}

/// Has clone3 answer "no such system call", so that the C library falls back to clone: a filter cannot look into clone3's
/// arguments.
fn refuse_clone3(program: &mut BpfProgram) -> Result<(), SeccompError> {
    let number = u32::try_from(syscalls::CLONE3.number).map_err(|_| SeccompError::Shape)?;
    let no_such_call = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    let rule = [
        sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: number },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: no_such_call },
    ];
    insert(program, rule)
}

/// `struct sock_filter` as the kernel has it in memory.
fn instruction_bytes(instruction: &sock_filter) -> [u8; 8] {
    let [code_0, code_1] = instruction.code.to_ne_bytes();
    let [k_0, k_1, k_2, k_3] = instruction.k.to_ne_bytes();
    [code_0, code_1, instruction.jt, instruction.jf, k_0, k_1, k_2, k_3]
}

#[cfg(test)]
mod tests;
