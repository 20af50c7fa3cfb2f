//! Planted faults: each is one way to be wrong, and the checks must find it.

use std::time::Duration;

use lb_ipam::{Edit, Entry, Pool, PoolChoice, Request, Settings, Timestamp, WhenSharingBreaks};

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The ledger says that it wrote and did not, now and then.
    WriteIsLost,
    /// The ledger keeps what should be freed for good.
    DeleteIsLost,
    /// Joining an address drops those that have it.
    JoinDropsOthers,
    /// Leaving an address takes everybody along.
    LeaveTakesOthers,
    /// What was given back is free at once.
    FreedAtOnce,
    /// A restart forgets what rests.
    RestartForgetsFreed,
    /// Services that go are not noticed.
    RemovalsAreIgnored,
    /// Services that cannot be read are not mentioned.
    UnreadableAreGone,
    /// Pools that go are not noticed.
    PoolsStay,
    /// First and last addresses are given out.
    EdgesAreGiven,
    /// Avoided addresses are given out.
    AvoidedAreGiven,
    /// Disabled pools go on giving.
    DisabledGives,
    /// Selectors do not matter.
    EverybodyIsSelected,
    /// Ports do not matter to sharing.
    PortsDoNotMatter,
    /// Every service has the same key.
    OneKeyForAll,
    /// The younger one is first.
    YoungestFirst,
    /// Of two pools that overlap the newer one wins.
    NewestPoolWins,
    /// Statuses are not read back.
    StatusIsNotRead,
    /// All statuses but the first are lost on their way.
    StatusIsLost,
    /// Garbage in lists is skipped in silence.
    GarbageIsSkipped,
    /// The clock is a day ahead.
    ClockIsAhead,
    /// The clock stands still.
    ClockStandsStill,
    /// What else answers for an address does not matter.
    ClaimsAreIgnored,
    /// Nothing drains.
    NothingDrains,
    /// Reserved addresses are given out.
    ReservedAreGiven,
    /// Who does not get along leaves where it should stay.
    QuarrelsMove,
    /// Who does not get along stays where it should leave.
    QuarrelsStay,
    /// The preferred pool is one like the others.
    PreferenceIsIgnored,
    /// Every pool will do for who wants one and no other.
    OnlyIsIgnored,
    /// Pools that give by name give to everybody.
    GivenUnasked,
}

impl Mutant {
    pub(crate) const ALL: [Self; 30] = [
        Self::WriteIsLost,
        Self::DeleteIsLost,
        Self::JoinDropsOthers,
        Self::LeaveTakesOthers,
        Self::FreedAtOnce,
        Self::RestartForgetsFreed,
        Self::RemovalsAreIgnored,
        Self::UnreadableAreGone,
        Self::PoolsStay,
        Self::EdgesAreGiven,
        Self::AvoidedAreGiven,
        Self::DisabledGives,
        Self::EverybodyIsSelected,
        Self::PortsDoNotMatter,
        Self::OneKeyForAll,
        Self::YoungestFirst,
        Self::NewestPoolWins,
        Self::StatusIsNotRead,
        Self::StatusIsLost,
        Self::GarbageIsSkipped,
        Self::ClockIsAhead,
        Self::ClockStandsStill,
        Self::ClaimsAreIgnored,
        Self::NothingDrains,
        Self::ReservedAreGiven,
        Self::QuarrelsMove,
        Self::QuarrelsStay,
        Self::PreferenceIsIgnored,
        Self::OnlyIsIgnored,
        Self::GivenUnasked,
    ];

    /// What the ledger really has after the `nth` write.
    pub(crate) fn written(mutant: Option<Self>, nth: u32, before: Option<&Entry>, new: Option<Entry>) -> Option<Entry> {
        let holders = |entry: Option<&Entry>| entry.map_or(0, |entry| entry.holders().len());
        match mutant {
            Some(Self::WriteIsLost) if nth.is_multiple_of(16) => before.cloned(),
            Some(Self::DeleteIsLost) if new.is_none() => before.cloned(),
            Some(Self::FreedAtOnce) if matches!(new, Some(Entry::Freed(_))) => None,
            Some(Self::LeaveTakesOthers) if holders(before) > 1 && holders(new.as_ref()) == 1 => None,
            Some(Self::JoinDropsOthers) if holders(before) == 1 && holders(new.as_ref()) == 2 => {
                let joined = new.as_ref()?.holders().last()?.clone();
                Some(Entry::Held(lb_ipam::Holders::one(joined)))
            }
            _ => new,
        }
    }

    /// What the allocator is told.
    pub(crate) fn told(mutant: Option<Self>, edit: Edit) -> Option<Edit> {
        let Some(mutant) = mutant else { return Some(edit) };
        match edit {
            Edit::UpsertPool(pool) => Some(Edit::UpsertPool(mutant.pool(pool))),
            Edit::RemovePool(_) if mutant == Self::PoolsStay => None,
            Edit::UpsertService(request) => Some(Edit::UpsertService(mutant.service(request))),
            Edit::RemoveService(_) if mutant == Self::RemovalsAreIgnored => None,
            Edit::KeepService(_) if mutant == Self::UnreadableAreGone => None,
            Edit::SetSettings(settings) => Some(Edit::SetSettings(mutant.settings(settings))),
            other => Some(other),
        }
    }

    fn settings(self, mut settings: Settings) -> Settings {
        match self {
            Self::ReservedAreGiven => settings.reserved.clear(),
            Self::QuarrelsMove => settings.when_sharing_breaks = WhenSharingBreaks::Move,
            Self::QuarrelsStay => settings.when_sharing_breaks = WhenSharingBreaks::Keep,
            _ => {}
        }
        settings
    }

    fn pool(self, mut pool: Pool) -> Pool {
        match self {
            Self::EdgesAreGiven => pool.allow_first_last = true,
            Self::AvoidedAreGiven => pool.avoid.clear(),
            Self::DisabledGives => pool.disabled = false,
            Self::EverybodyIsSelected => pool.selectors.clear(),
            Self::NothingDrains => pool.drain = Duration::ZERO,
            Self::GivenUnasked => pool.auto_assign = true,
            Self::NewestPoolWins => pool.created = Timestamp::from_secs(1000 - pool.created.as_millis() / 1000),
            _ => {}
        }
        pool
    }

    fn service(self, mut request: Request) -> Request {
        match self {
            Self::PortsDoNotMatter => request.ports.clear(),
            Self::PreferenceIsIgnored if matches!(request.pool, PoolChoice::Prefer(_)) => {
                request.pool = PoolChoice::Any
            }
            Self::OnlyIsIgnored if matches!(request.pool, PoolChoice::Only(_)) => request.pool = PoolChoice::Any,
            Self::OneKeyForAll => request.sharing = Some(lb_ipam::Sharing::new("k")),
            Self::YoungestFirst => request.created = Timestamp::from_secs(1000 - request.created.as_millis() / 1000),
            Self::StatusIsNotRead => request.published = lb_ipam::Status::default(),
            Self::GarbageIsSkipped => {
                request.addresses.retain(|wanted| matches!(wanted, lb_ipam::RequestedAddress::Address(_)))
            }
            _ => {}
        }
        request
    }

    pub(crate) fn clock(mutant: Option<Self>, now: Timestamp) -> Timestamp {
        match mutant {
            Some(Self::ClockIsAhead) => now + Duration::from_secs(86_400),
            Some(Self::ClockStandsStill) => Timestamp::from_secs(1_000_000),
            _ => now,
        }
    }
}
