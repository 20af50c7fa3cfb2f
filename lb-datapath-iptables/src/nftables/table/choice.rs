//! The fate of new flows of a frontend: as a number, and as a chain with a name.

use std::{fmt, str::FromStr, time::Duration};

use lb_core::{
    addr::{Family, Scope},
    affinity::Affinity,
    id::FrontendId,
    state::Lookup,
};

use crate::nftables::table::layout::millis;

/// The fate of a new flow of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Choice {
    /// Refused at once.
    Refuse,
    /// Dropped silently.
    Drop,
    /// Sent to a backend that this chain picks.
    Pick(Pick),
}

/// A choice as four numbers, what the kernel compares at once: what it is and half of the affinity, slots, the frontend
/// that takes turns, the other half of the affinity.
const WORDS: usize = 4;
/// Bytes of a choice that is a number.
pub(crate) const CHOICE: usize = 4 * WORDS;

/// Lowest bit of the kind in the first number.
const KIND: u32 = 29;
const DROP: u32 = 1;
const REFUSE: u32 = 2;
const RANDOM: u32 = 3;
const HASH: u32 = 4;
const TURN: u32 = 5;
/// In the second number, beside the slots: of scope internal.
const OF_INTERNAL: u32 = 1 << 31;

impl Choice {
    /// The choices that need no chain of their own; every table has them.
    pub(crate) const FIXED: [Self; 2] = [Self::Refuse, Self::Drop];

    /// The number that stands for it, never all zeros.
    pub(crate) fn words(self) -> [u32; WORDS] {
        let pick = match self {
            Self::Drop => return [DROP << KIND, 0, 0, 0],
            Self::Refuse => return [REFUSE << KIND, 0, 0, 0],
            Self::Pick(pick) => pick,
        };
        let (kind, turn) = match pick.how {
            How::Random => (RANDOM, 0),
            How::Hash => (HASH, 0),
            How::Turn(frontend) => (TURN, frontend.get()),
        };
        // At most 45 bits of milliseconds, and at least one.
        let affinity = pick.affinity.map_or(0, |affinity| {
            millis(affinity.timeout) << 16 | u64::from(affinity.prefix_v4) << 8 | u64::from(affinity.prefix_v6)
        });
        let slots = pick.slots | if pick.scope == Scope::Internal { OF_INTERNAL } else { 0 };
        [kind << KIND | (affinity >> 32) as u32, slots, turn, affinity as u32]
    }

    /// The choice that a number stands for.
    pub(crate) fn from_words(family: Family, words: [u32; WORDS]) -> Option<Self> {
        let [first, slots, turn, low] = words;
        let how = match first >> KIND {
            DROP | REFUSE => return Self::FIXED.into_iter().find(|choice| choice.words() == words),
            RANDOM if turn == 0 => How::Random,
            HASH if turn == 0 => How::Hash,
            TURN => How::Turn(FrontendId::new(turn)?),
            _ => return None,
        };
        let [.., prefix_v4, prefix_v6] = low.to_be_bytes();
        let ms = (u64::from(first & !(u32::MAX << KIND)) << 32 | u64::from(low)) >> 16;
        let affinity = (ms != 0).then(|| Affinity { timeout: Duration::from_millis(ms), prefix_v4, prefix_v6 });
        let scope = if slots & OF_INTERNAL == 0 { Scope::External } else { Scope::Internal };
        let choice = Self::Pick(Pick { family, scope, how, slots: slots & !OF_INTERNAL, affinity });
        (choice.words() == words).then_some(choice)
    }

    /// The chain that picks, if one does.
    pub(crate) const fn pick(self) -> Option<Pick> {
        match self {
            Self::Pick(pick) => Some(pick),
            Self::Refuse | Self::Drop => None,
        }
    }
}

/// How a backend is picked: one chain for each, shared by every frontend that picks the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pick {
    /// Family of frontend and backends.
    pub(crate) family: Family,
    /// Scope of the frontend.
    pub(crate) scope: Scope,
    /// How a slot is found.
    pub(crate) how: How,
    /// Number of slots.
    pub(crate) slots: u32,
    /// Affinity.
    pub(crate) affinity: Option<Affinity>,
}

/// How a pick finds its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum How {
    /// At random.
    Random,
    /// By the flow hash.
    Hash,
    /// In turn. The kernel keeps one counter per rule ([`nft_numgen`]), so each frontend has a chain of its own. Two
    /// frontends that shared a counter could starve some of each other's backends.
    ///
    /// [`nft_numgen`]: https://elixir.bootlin.com/linux/v6.18/source/net/netfilter/nft_numgen.c
    Turn(FrontendId),
}

impl Pick {
    /// Whether the slots are in [`Set::Tables`](super::layout::Set::Tables). A rule that finds a slot in a block has to
    /// work out its number twice, which it can for a hash. With affinity, too much else has to be in the registers.
    pub(crate) fn is_packed(&self) -> bool {
        self.how == How::Hash && self.affinity.is_none()
    }

    /// The model's name for how the slot is found.
    pub(crate) const fn lookup(&self) -> Lookup {
        match self.how {
            How::Random => Lookup::Random,
            How::Hash => Lookup::Hash,
            How::Turn(_) => Lookup::RoundRobin,
        }
    }
}

/// As reports of drift name it; for a pick, the name of its chain.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refuse => f.write_str("refuse"),
            Self::Drop => f.write_str("drop"),
            Self::Pick(pick) => pick.fmt(f),
        }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == Family::V4 { 4 } else { 6 };
        write!(f, "pick{family}-")?;
        if self.scope == Scope::Internal {
            f.write_str("internal-")?;
        }
        match self.how {
            How::Random => write!(f, "random-{}", self.slots)?,
            How::Hash => write!(f, "hash-{}", self.slots)?,
            How::Turn(frontend) => write!(f, "turn-{}-f{frontend}", self.slots)?,
        }
        let Some(affinity) = self.affinity else { return Ok(()) };
        let (ms, v4, v6) = (millis(affinity.timeout), affinity.prefix_v4, affinity.prefix_v6);
        write!(f, "-affinity-{ms}ms-{v4}-{v6}")
    }
}

/// A chain's name is not that of a pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a pick chain")]
pub(crate) struct NotAPick;

impl FromStr for Pick {
    type Err = NotAPick;

    fn from_str(name: &str) -> Result<Self, NotAPick> {
        let mut words = name.split('-');
        let mut word = || words.next().ok_or(NotAPick);
        let family = match word()? {
            "pick4" => Family::V4,
            "pick6" => Family::V6,
            _ => return Err(NotAPick),
        };
        let mut kind = word()?;
        let scope = if kind == "internal" { Scope::Internal } else { Scope::External };
        if scope == Scope::Internal {
            kind = word()?;
        }
        let slots = number(word()?)?;
        let how = match kind {
            "random" => How::Random,
            "hash" => How::Hash,
            "turn" => How::Turn(FrontendId::new(number(word()?.strip_prefix('f').ok_or(NotAPick)?)?).ok_or(NotAPick)?),
            _ => return Err(NotAPick),
        };
        let affinity = match words.next() {
            None => None,
            Some("affinity") => Some(affinity(&mut words)?),
            Some(_) => return Err(NotAPick),
        };
        Ok(Self { family, scope, how, slots, affinity })
    }
}

fn affinity<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<Affinity, NotAPick> {
    let mut word = || words.next().ok_or(NotAPick);
    let ms = number(word()?.strip_suffix("ms").ok_or(NotAPick)?)?;
    Ok(Affinity { timeout: Duration::from_millis(ms), prefix_v4: number(word()?)?, prefix_v6: number(word()?)? })
}

fn number<T: FromStr>(word: &str) -> Result<T, NotAPick> {
    word.parse().map_err(|_| NotAPick)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nftables::table::layout::{MAX_SLOTS, MAX_TIMEOUT};

    #[test]
    fn a_pick_survives_its_name() {
        let affinity = Affinity { timeout: Duration::from_millis(1500), prefix_v4: 24, prefix_v6: 56 };
        for family in [Family::V4, Family::V6] {
            for how in [How::Random, How::Hash, How::Turn(FrontendId::new(7).unwrap())] {
                for affinity in [None, Some(affinity), Some(Affinity::default())] {
                    for scope in [Scope::External, Scope::Internal] {
                        let pick = Pick { family, scope, how, slots: 131_071, affinity };
                        let name = pick.to_string();
                        assert_eq!(name.parse(), Ok(pick), "{name}");
                        assert!(name.len() < 128, "nf_tables takes 127 bytes: {name}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_choice_survives_its_number() {
        let affinity = |ms| Affinity { timeout: Duration::from_millis(ms), prefix_v4: 24, prefix_v6: 128 };
        let longest = u64::try_from(MAX_TIMEOUT.as_millis()).unwrap();
        for family in [Family::V4, Family::V6] {
            for how in [How::Random, How::Hash, How::Turn(FrontendId::new(u32::MAX).unwrap())] {
                for affinity in [None, Some(affinity(1)), Some(affinity(longest))] {
                    for scope in [Scope::External, Scope::Internal] {
                        let choice = Choice::Pick(Pick { family, scope, how, slots: MAX_SLOTS, affinity });
                        assert_eq!(Choice::from_words(family, choice.words()), Some(choice));
                    }
                }
            }
            for choice in Choice::FIXED {
                assert_eq!(Choice::from_words(family, choice.words()), Some(choice));
            }
            let [drop, random, turn] = [DROP, RANDOM, TURN].map(|kind| kind << KIND);
            for other in
                [[0; WORDS], [drop, 1, 0, 0], [random, 4, 1, 0], [random, 4, 0, 1], [turn, 4, 0, 0], [!0; WORDS]]
            {
                assert_eq!(Choice::from_words(family, other), None, "{other:?}");
            }
        }
    }

    #[test]
    fn other_names_are_no_picks() {
        for name in ["", "refuse", "pick4", "pick5-random-4", "pick4-random-x", "pick4-turn-4", "pick4-random-4-extra"]
        {
            assert_eq!(name.parse::<Pick>(), Err(NotAPick), "{name}");
        }
    }
}
