//! Codes for machines.

use core::fmt;

/// Why a service is not satisfied, as a code that never changes: the reason of the condition
/// `cilium.io/IPAMRequestSatisfied`. The first five are Cilium's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// `no_pool`: no pool in service has a block for it.
    NoPool,
    /// `out_of_ips`: every pool for it is full.
    OutOfIps,
    /// `already_allocated`: another service holds the address.
    AlreadyAllocated,
    /// `already_allocated_incompatible_service`: it has a sharing key, but may not share with the holder.
    AlreadyAllocatedIncompatibleService,
    /// `pool_selector_mismatch`: the pool of the address is not for this service.
    PoolSelectorMismatch,
    /// `pool_disabled`: the pool of the address allocates nothing.
    PoolDisabled,
    /// `pool_conflict`: the pool of the address overlaps an older one.
    PoolConflict,
    /// `pool_invalid`: the pool of the address is wrong.
    PoolInvalid,
    /// `reserved_address`: the address is never allocated.
    ReservedAddress,
    /// `address_draining`: a service had to leave the address a moment ago.
    AddressDraining,
    /// `address_conflict`: something else on the network answers for the address.
    AddressConflict,
    /// `family_disabled`: the cluster does not have the family.
    FamilyDisabled,
    /// `family_mismatch`: the service does not list the family of the address.
    FamilyMismatch,
    /// `invalid_request`: what is asked for cannot be understood or is too much.
    InvalidRequest,
    /// `quota_exceeded`: the namespace has as many addresses as it may.
    QuotaExceeded,
}

impl Reason {
    /// Every reason there is.
    pub const ALL: [Self; 15] = [
        Self::NoPool,
        Self::OutOfIps,
        Self::AlreadyAllocated,
        Self::AlreadyAllocatedIncompatibleService,
        Self::PoolSelectorMismatch,
        Self::PoolDisabled,
        Self::PoolConflict,
        Self::PoolInvalid,
        Self::ReservedAddress,
        Self::AddressDraining,
        Self::AddressConflict,
        Self::FamilyDisabled,
        Self::FamilyMismatch,
        Self::InvalidRequest,
        Self::QuotaExceeded,
    ];
    /// The reason of a condition that is true.
    pub const SATISFIED: &'static str = "satisfied";

    /// The code.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoPool => "no_pool",
            Self::OutOfIps => "out_of_ips",
            Self::AlreadyAllocated => "already_allocated",
            Self::AlreadyAllocatedIncompatibleService => "already_allocated_incompatible_service",
            Self::PoolSelectorMismatch => "pool_selector_mismatch",
            Self::PoolDisabled => "pool_disabled",
            Self::PoolConflict => "pool_conflict",
            Self::PoolInvalid => "pool_invalid",
            Self::ReservedAddress => "reserved_address",
            Self::AddressDraining => "address_draining",
            Self::AddressConflict => "address_conflict",
            Self::FamilyDisabled => "family_disabled",
            Self::FamilyMismatch => "family_mismatch",
            Self::InvalidRequest => "invalid_request",
            Self::QuotaExceeded => "quota_exceeded",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
