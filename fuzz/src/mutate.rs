//! Inputs out of other inputs, the same for the same seed.

/// Texts that mean something to somebody on the way.
const WORDS: [&[u8]; 24] = [
    b"---\n",
    b": ",
    b"- ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"&a ",
    b"*a",
    b"<<: *a\n",
    b"\"\\e[2J\"",
    b"|\n  ",
    b"!!binary ",
    b"\x1b[31m",
    "\u{202e}".as_bytes(),
    b"\r\n",
    b"\t",
    b"\0",
    b"65536",
    b"-1",
    b"../",
    b"; drop",
    b"null",
    b"\xff",
];

/// A generator of numbers, xorshift64*.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// A generator that begins with `seed`; 0 counts as 1.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// A number below `limit`, or 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        number as usize % limit.max(1)
    }
}

/// One of `corpus` with up to four changes.
#[must_use]
pub fn mutated(corpus: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let pick = |numbers: &mut Numbers| corpus.get(numbers.below(corpus.len())).cloned().unwrap_or_default();
    let mut data = pick(numbers);
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(data.len() + 1);
        let end = (at + numbers.below(32)).min(data.len());
        match numbers.below(6) {
            0 => drop(data.drain(at..end)),
            1 => drop(data.splice(at..at, WORDS[numbers.below(WORDS.len())].iter().copied())),
            2 => data.truncate(at),
            3 => {
                let other = pick(numbers);
                let from = numbers.below(other.len() + 1);
                data.splice(at.., other[from..].iter().copied());
            }
            4 => data.extend_from_within(at..end),
            _ => match data.get_mut(at) {
                Some(byte) => *byte ^= 1 << numbers.below(8),
                None => data.push(numbers.below(256) as u8),
            },
        }
    }
    data
}
