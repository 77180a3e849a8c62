//! Which devices a container may use, as rules and as a program for the kernel.
//!
//! Pure: no I/O, no clock, no randomness.

/// Make the device's node, read it, write it; of `linux/bpf.h`, as what follows.
const MKNOD: i32 = 1;
const ALL: i32 = 7;
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// Some devices, and what may be done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    kind: i32,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

const fn character(major: i32, minor: Option<i32>) -> Rule {
    Rule { kind: CHARACTER, major: Some(major), minor, access: ALL }
}

/// What every container may use: the devices that the runtime specification puts into `/dev`, terminals, and nodes that can be
/// made but not opened.
const ALLOWED: [Rule; 10] = [
    character(1, Some(3)),
    character(1, Some(5)),
    character(1, Some(7)),
    character(1, Some(8)),
    character(1, Some(9)),
    character(5, Some(0)),
    character(5, Some(2)),
    character(136, None),
    Rule { kind: CHARACTER, major: None, minor: None, access: MKNOD },
    Rule { kind: BLOCK, major: None, minor: None, access: MKNOD },
];

/// The lines for `devices.allow` of a cgroup of version 1 from which all were taken.
pub(super) fn lines() -> impl Iterator<Item = String> {
    ALLOWED.iter().map(|rule| {
        let number = |number: Option<i32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let kind = if rule.kind == BLOCK { 'b' } else { 'c' };
        let access = if rule.access == MKNOD { "m" } else { "rwm" };
        format!("{kind} {}:{} {access}", number(rule.major), number(rule.minor))
    })
}

/// One instruction of the kernel's eBPF machine, as `struct bpf_insn` has it in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    code: u8,
    /// The register that is written in the low four bits, the one that is read in the high ones.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

/// BPF_LDX | BPF_MEM | BPF_W: the word at an offset from register 1.
const fn load(into: u8, offset: i16) -> Instruction {
    instruction(0x61, into | 1 << 4, offset, 0)
}

/// BPF_ALU64 | BPF_MOV | BPF_X
const fn copy(into: u8, from: u8) -> Instruction {
    instruction(0xbf, into | from << 4, 0, 0)
}

/// BPF_ALU64 | BPF_AND | BPF_K
const fn and(register: u8, bits: i32) -> Instruction {
    instruction(0x57, register, 0, bits)
}

/// BPF_ALU64 | BPF_RSH | BPF_K
const fn shift_right(register: u8, bits: i32) -> Instruction {
    instruction(0x77, register, 0, bits)
}

/// BPF_ALU64 | BPF_MOV | BPF_K into register 0, and BPF_EXIT
const fn verdict(allowed: bool) -> [Instruction; 2] {
    [instruction(0xb7, 0, 0, allowed as i32), instruction(0x95, 0, 0, 0)]
}

/// A program of type BPF_PROG_TYPE_CGROUP_DEVICE that allows what is allowed and nothing else. It is given a
/// `struct bpf_cgroup_dev_ctx`: the kind of the device in the low half of a word and the access in the high one, and then its
/// numbers.
pub(super) fn program() -> Vec<Instruction> {
    /// BPF_JMP | BPF_JNE | BPF_K, and with BPF_X
    const UNLESS: u8 = 0x55;
    const UNLESS_SAME: u8 = 0x5d;
    let mut program = vec![load(2, 0), copy(3, 2), and(2, 0xffff), shift_right(3, 16), load(4, 4), load(5, 8)];
    for rule in ALLOWED {
        let mut steps = vec![instruction(UNLESS, 2, 0, rule.kind)];
        if rule.access != ALL {
            // What is asked for is no more than what may be done.
            steps.extend([copy(1, 3), and(1, rule.access), instruction(UNLESS_SAME, 1 | 3 << 4, 0, 0)]);
        }
        steps.extend(rule.major.map(|major| instruction(UNLESS, 4, 0, major)));
        steps.extend(rule.minor.map(|minor| instruction(UNLESS, 5, 0, minor)));
        steps.extend(verdict(true));
        let end = steps.len();
        for (at, step) in steps.iter_mut().enumerate() {
            if step.code == UNLESS || step.code == UNLESS_SAME {
                // Behind this rule; there are a few instructions in it at most.
                step.offset = i16::try_from(end - at - 1).unwrap_or(i16::MAX);
            }
        }
        program.extend(steps);
    }
    program.extend(verdict(false));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_those_of_version_1() {
        let lines: Vec<String> = lines().collect();
        assert_eq!(lines[0], "c 1:3 rwm");
        assert_eq!(lines[7..], ["c 136:* rwm", "c *:* m", "b *:* m"]);
    }

    #[test]
    fn every_jump_stays_in_the_program() {
        let program = program();
        for (at, step) in program.iter().enumerate() {
            assert!(at + 1 + usize::try_from(step.offset).unwrap() <= program.len() || step.code == 0x61);
        }
    }
}
