//! What of an eBPF object is compared, and what is left out of it.

use std::collections::BTreeMap;

use object::{
    Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind,
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

use super::btf;

/// The object without DWARF, which only debuggers read; the kernel's own type information stays.
pub(super) fn strip(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut builder = Builder::read(bytes).map_err(|error| error.to_string())?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug") || name.starts_with(".rel.debug");
    }
    builder.delete_orphans();
    // LLVM keeps names of sections and symbols in one table, which this writer does not.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped).map_err(|error| error.to_string())?;
    Ok(stripped)
}

/// What makes an object what it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// Sections that the loader reads, by name, with what their relocations name.
    sections: BTreeMap<String, Section>,
    /// Types, one line each.
    types: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Section {
    code: bool,
    bytes: Vec<u8>,
    relocations: Vec<(u64, String)>,
}

impl Parts {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let file = object::File::parse(bytes).map_err(|error| error.to_string())?;
        let mut sections = BTreeMap::new();
        for section in file.sections() {
            let name = section.name().map_err(|error| error.to_string())?;
            let code = section.kind() == SectionKind::Text;
            if code || [".maps", "license"].contains(&name) || is_data(name) {
                let bytes = section.data().map_err(|error| error.to_string())?.to_vec();
                let relocations =
                    section.relocations().map(|(at, relocation)| (at, target(&file, relocation.target())));
                let relocations = relocations.collect();
                sections.insert(name.to_string(), Section { code, bytes, relocations });
            }
        }
        let btf = file.section_by_name(".BTF").ok_or("it has no section .BTF")?;
        let types = btf::types(btf.data().map_err(|error| error.to_string())?)?;
        Ok(Self { sections, types })
    }

    /// The section that code lies in which only a panic reaches.
    pub(super) fn panics(&self) -> Option<&str> {
        self.sections.keys().map(String::as_str).find(|name| name.starts_with(".text.unlikely"))
    }

    /// A section of constants or variables, which the loader makes a map of.
    pub(super) fn constants(&self) -> Option<&str> {
        self.sections.keys().map(String::as_str).find(|name| is_data(name))
    }

    /// Number of sections with code.
    pub(super) fn programs(&self) -> usize {
        self.sections.values().filter(|section| section.code).count()
    }

    /// In what `self` is not `other`.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let mut names: Vec<_> = self.sections.keys().chain(other.sections.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let differs = |name: &&&String| self.sections.get(**name) != other.sections.get(**name);
        let mut found: Vec<_> = names.iter().filter(differs).map(|name| format!("section {name}")).collect();
        if self.types != other.types {
            let (before, after) = (&self.types, &other.types);
            let at = before.iter().zip(after).take_while(|(a, b)| a == b).count();
            found.push(format!("type {} ({:?}, expected {:?})", at + 1, before.get(at), after.get(at)));
        }
        found
    }
}

/// What a relocation points to, by name: numbers of symbols depend on their order.
fn target(file: &object::File<'_>, target: RelocationTarget) -> String {
    let section = |index| file.section_by_index(index).ok().and_then(|section| Some(section.name().ok()?.to_string()));
    let found = match target {
        RelocationTarget::Symbol(index) => file.symbol_by_index(index).ok().and_then(|symbol| match symbol.name() {
            Ok(name) if !name.is_empty() => Some(name.to_string()),
            _ => section(symbol.section_index()?),
        }),
        RelocationTarget::Section(index) => section(index),
        _ => None,
    };
    found.unwrap_or_else(|| format!("{target:?}"))
}

fn is_data(section: &str) -> bool {
    [".rodata", ".data", ".bss"].iter().any(|data| section.starts_with(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(sections: &[&str]) -> Parts {
        let section = || Section { code: false, bytes: Vec::new(), relocations: Vec::new() };
        Parts { sections: sections.iter().map(|name| (name.to_string(), section())).collect(), types: Vec::new() }
    }

    #[test]
    fn sections_that_no_object_may_have_are_found() {
        let good = parts(&[".maps", ".text", "classifier", "license"]);
        assert_eq!((good.panics(), good.constants()), (None, None));
        assert_eq!(parts(&[".text", ".text.unlikely.lb"]).panics(), Some(".text.unlikely.lb"));
        for data in [".rodata", ".rodata.cst16", ".data", ".bss"] {
            assert_eq!(parts(&[".text", data]).constants(), Some(data));
        }
    }
}
