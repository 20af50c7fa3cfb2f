//! Types of the BPF type format (`Documentation/bpf/btf.rst` of the kernel), as text.
//!
//! The string section holds lines of source as well, which a comment changes; so types are compared by what they say.

/// One line per type of a `.BTF` section, with names in place of where they lie.
pub(super) fn types(section: &[u8]) -> Result<Vec<String>, String> {
    const HEADER_LEN: usize = 4;
    let header = Words(section);
    let start = header.word(HEADER_LEN)?;
    let [types, types_len, names, names_len] = [8, 12, 16, 20].map(|at| header.word(at));
    let names = header.part(start + names?, names_len?)?;
    let body = header.part(start + types?, types_len?)?;
    let (mut found, mut at) = (Vec::new(), 0);
    while at < body.0.len() {
        let kind = Kind::of(body.word(at + 4)? as u32)?;
        let words = 3 + kind.more_words();
        let line = (0..words).map(|i| {
            let word = body.word(at + 4 * i)?;
            if kind.is_name(i) { names.name(word) } else { Ok(word.to_string()) }
        });
        found.push(line.collect::<Result<Vec<_>, _>>()?.join(" "));
        at += 4 * words;
    }
    Ok(found)
}

/// Kind of a type, and its number of members.
struct Kind {
    number: u32,
    members: usize,
}

impl Kind {
    fn of(info: u32) -> Result<Self, String> {
        let kind = Self { number: info >> 24 & 0x1f, members: (info & 0xffff) as usize };
        if (1..=19).contains(&kind.number) { Ok(kind) } else { Err(format!("it has a type of kind {}", kind.number)) }
    }

    /// Words behind the three that every type has.
    fn more_words(&self) -> usize {
        match self.number {
            // Integer, variable, tag of a declaration.
            1 | 14 | 17 => 1,
            // Array.
            3 => 3,
            // Structure, union, data section, enumeration of 64 bits.
            4 | 5 | 15 | 19 => 3 * self.members,
            // Enumeration, prototype of a function.
            6 | 13 => 2 * self.members,
            _ => 0,
        }
    }

    /// Whether word `i` of the type says where a name lies.
    const fn is_name(&self, i: usize) -> bool {
        match (i, self.number) {
            (0, _) => true,
            (3.., 4 | 5 | 19) => i.is_multiple_of(3),
            (3.., 6 | 13) => i % 2 == 1,
            _ => false,
        }
    }
}

/// Little-endian words.
struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    fn word(&self, at: usize) -> Result<usize, String> {
        let bytes = self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| u32::from_le_bytes(bytes) as usize).ok_or_else(|| format!("its types end at byte {at}"))
    }

    fn part(&self, at: usize, len: usize) -> Result<Words<'a>, String> {
        self.0.get(at..at + len).map(Words).ok_or_else(|| format!("its types end before byte {}", at + len))
    }

    fn name(&self, at: usize) -> Result<String, String> {
        let rest = self.0.get(at..).ok_or_else(|| format!("it has no name at {at}"))?;
        let name = rest.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section with these types and names.
    fn section(types: &[u32], names: &[u8]) -> Vec<u8> {
        let (types_len, names_len) = (types.len() as u32 * 4, names.len() as u32);
        let header = [0x0001_eb9f, 24, 0, types_len, types_len, names_len];
        let words = header.into_iter().chain(types.iter().copied());
        words.flat_map(u32::to_le_bytes).chain(names.iter().copied()).collect()
    }

    #[test]
    fn types_do_not_depend_on_where_their_names_lie() {
        // An integer, and a structure with one member of it.
        let type_words = |int, structure, member| [int, 1 << 24, 4, 32, structure, 4 << 24 | 1, 4, member, 1, 0];
        let a = types(&section(&type_words(1, 5, 7), b"\0int\0s\0m\0")).unwrap();
        let b = types(&section(&type_words(13, 11, 1), b"\0m\0// text\0s\0int\0")).unwrap();
        assert_eq!(a, ["int 16777216 4 32", "s 67108865 4 m 1 0"]);
        assert_ne!(a, types(&section(&type_words(1, 7, 5), b"\0int\0s\0m\0")).unwrap());
        assert_eq!(a, b);
    }

    #[test]
    fn a_cut_section_is_an_error() {
        let whole = section(&[1, 1 << 24, 4, 32], b"\0int\0");
        assert!(types(&whole).is_ok());
        for len in 0..whole.len() {
            assert!(types(&whole[..len]).is_err(), "{len} bytes");
        }
    }
}
