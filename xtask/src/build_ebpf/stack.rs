//! How much stack the functions of an object need, as the verifier counts it.

use std::collections::BTreeMap;

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SymbolKind};

/// Most bytes of a chain of calls: `MAX_BPF_STACK` in
/// <https://elixir.bootlin.com/linux/v6.6/source/include/linux/filter.h>.
const MOST: u32 = 512;
/// The frame of each function is rounded up to this:
/// <https://elixir.bootlin.com/linux/v6.6/source/kernel/bpf/verifier.c> (`check_max_stack_depth_subprog`). Later
/// kernels round less when they compile programs to machine code.
const ROUND: u32 = 32;

/// A function of an object.
#[derive(Debug, Default)]
struct Function {
    name: String,
    frame: u32,
    calls: Vec<Address>,
}

/// Section and offset within it.
type Address = (usize, u64);

/// The chain of calls that needs more stack than a kernel allows, if there is one.
pub(super) fn too_deep(bytes: &[u8]) -> Result<Option<String>, String> {
    let file = object::File::parse(bytes).map_err(|error| error.to_string())?;
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let Some(index) = symbol.section_index() else { continue };
        let function = function(&file, index, &symbol).map_err(|error| error.to_string())?;
        functions.insert((index.0, symbol.address()), function);
    }
    Ok(functions
        .keys()
        .map(|address| deepest(&functions, *address))
        .find(|(depth, _)| *depth > MOST)
        .map(|(depth, names)| format!("{depth} bytes, at most {MOST} are allowed: {}", names.join(" calls "))))
}

fn function<'a>(
    file: &object::File<'a>,
    index: SectionIndex,
    symbol: &impl ObjectSymbol<'a>,
) -> Result<Function, object::Error> {
    let section = file.section_by_index(index)?;
    let range = symbol.address()..symbol.address() + symbol.size();
    let code = section.data()?.get(range.start as usize..range.end as usize).unwrap_or_default();
    let relocations: BTreeMap<u64, RelocationTarget> =
        section.relocations().map(|(at, relocation)| (at, relocation.target())).collect();
    let mut calls = Vec::new();
    for (at, bytes) in range.step_by(8).zip(code.chunks_exact(8)) {
        let Some(Instruction::Call { offset }) = Instruction::read(bytes) else { continue };
        let Some(RelocationTarget::Symbol(target)) = relocations.get(&at) else {
            // A call within the section counts instructions from the next one.
            calls.push((index.0, (at + 8).wrapping_add_signed(i64::from(offset) * 8)));
            continue;
        };
        let target = file.symbol_by_index(*target)?;
        // A call by section counts instructions from its start, less the one after the call.
        let base = if target.kind() == SymbolKind::Section { i64::from(offset + 1) * 8 } else { 0 };
        calls.extend(target.section_index().map(|section| (section.0, target.address().wrapping_add_signed(base))));
    }
    Ok(Function { name: symbol.name()?.into(), frame: frame(code), calls })
}

/// The most that a chain from this function on needs, and the names along it. The verifier refuses recursion.
fn deepest(functions: &BTreeMap<Address, Function>, address: Address) -> (u32, Vec<String>) {
    let Some(function) = functions.get(&address) else { return (0, Vec::new()) };
    let below = function.calls.iter().map(|call| deepest(functions, *call)).max_by_key(|(depth, _)| *depth);
    let (depth, names) = below.unwrap_or_default();
    let own = function.frame.max(1).next_multiple_of(ROUND);
    (own + depth, std::iter::once(function.name.clone()).chain(names).collect())
}

/// Bytes below the frame pointer that the code reaches, by loads and stores or by addresses that it takes.
fn frame(code: &[u8]) -> u32 {
    let (mut frame, mut pointers) = (0, [false; 16]);
    for instruction in code.chunks_exact(8).filter_map(Instruction::read) {
        match instruction {
            Instruction::Access { base: FRAME_POINTER, offset } => frame = frame.max(-i32::from(offset)),
            Instruction::Access { .. } | Instruction::Call { .. } => {}
            Instruction::Move { to, from } => pointers[usize::from(to)] = from == FRAME_POINTER,
            Instruction::Add { to, value } => {
                if std::mem::take(&mut pointers[usize::from(to)]) {
                    frame = frame.max(-value);
                }
            }
        }
    }
    u32::try_from(frame).unwrap_or(0)
}

const FRAME_POINTER: u8 = 10;

/// The instructions that say something about the stack.
enum Instruction {
    Access { base: u8, offset: i16 },
    Move { to: u8, from: u8 },
    Add { to: u8, value: i32 },
    Call { offset: i32 },
}

impl Instruction {
    fn read(bytes: &[u8]) -> Option<Self> {
        let &[code, registers, o0, o1, v0, v1, v2, v3] = bytes.first_chunk()?;
        let (to, from) = (registers & 0x0f, registers >> 4);
        let (offset, value) = (i16::from_le_bytes([o0, o1]), i32::from_le_bytes([v0, v1, v2, v3]));
        match code {
            0xbf => Some(Self::Move { to, from }),
            0x07 => Some(Self::Add { to, value }),
            // A call of another function of the object; helpers have source 0.
            0x85 if from == 1 => Some(Self::Call { offset: value }),
            _ => match code & 0x07 {
                1 => Some(Self::Access { base: from, offset }),
                2 | 3 => Some(Self::Access { base: to, offset }),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(frame: u32, calls: &[u64]) -> Function {
        Function { name: format!("f{frame}"), frame, calls: calls.iter().map(|at| (1, *at)).collect() }
    }

    #[test]
    fn frames_of_a_chain_are_rounded_and_added() {
        let functions = BTreeMap::from([
            ((1, 0), function(200, &[8, 16])),
            ((1, 8), function(0, &[])),
            ((1, 16), function(296, &[8])),
        ]);
        assert_eq!(deepest(&functions, (1, 8)), (32, vec!["f0".into()]));
        assert_eq!(deepest(&functions, (1, 0)), (224 + 320 + 32, vec!["f200".into(), "f296".into(), "f0".into()]));
    }

    #[test]
    fn a_frame_is_as_deep_as_its_deepest_access() {
        // *(u64 *)(r10 - 8) = r1; r2 = r10; r2 += -40; r3 = r1; r3 += -99; r4 = *(u32 *)(r10 - 16)
        let code: [[u8; 8]; 6] = [
            [0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0],
            [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
            [0x07, 0x02, 0, 0, 0xd8, 0xff, 0xff, 0xff],
            [0xbf, 0x13, 0, 0, 0, 0, 0, 0],
            [0x07, 0x03, 0, 0, 0x9d, 0xff, 0xff, 0xff],
            [0x61, 0xa4, 0xf0, 0xff, 0, 0, 0, 0],
        ];
        assert_eq!(frame(&code.concat()), 40);
        assert_eq!(frame(&code[..1].concat()), 8);
        assert_eq!(frame(&[]), 0);
    }

    #[test]
    fn the_committed_object_fits() {
        let object = std::fs::read(crate::root().join(super::super::OBJECT)).unwrap();
        assert_eq!(too_deep(&object), Ok(None));
        let file = object::File::parse(&*object).unwrap();
        let calls = file
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
            .map(|symbol| super::function(&file, symbol.section_index().unwrap(), &symbol).unwrap().calls.len());
        assert!(calls.sum::<usize>() > 5, "calls are found");
    }
}
