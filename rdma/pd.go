package rdma

import (
	"github.com/millrace/millrace/hugepages"
)

// PD is a protection domain. What is made from one cannot be used with another.
type PD interface {
	// RegisterMR makes an arena's memory usable in the work requests of this domain's
	// queue pairs, and, as far as access allows, by their peers. An arena is
	// registered once for each access: asked again, the region is the same, and lives
	// until it was closed as often.
	RegisterMR(a *hugepages.Arena, access Access) (*MR, error)
	// CreateSRQ makes a shared receive queue; ErrNotSupported without CapSRQ.
	CreateSRQ(cfg SRQConfig) (SRQ, error)
	// CreateQP makes a queue pair in state INIT.
	CreateQP(cfg QPConfig) (QP, error)
	// Close frees the domain; what was made from it must be closed before.
	Close() error
}

// Access is what peers may do with memory, and through a queue pair: both must
// allow it. This end may always do everything.
type Access uint8

const (
	RemoteRead   Access = 1 << iota // READ
	RemoteWrite                     // WRITE and WRITE_WITH_IMM
	RemoteAtomic                    // COMPARE_SWAP and FETCH_ADD
)

// MR is a registered memory region.
type MR struct {
	Arena  *hugepages.Arena
	Access Access
	LKey   uint32
	RKey   uint32 // what the peer must name; whoever knows it has Access
	Base   uint64 // remote address of the arena's first byte

	deregister func() error
}

// NewMR is for devices; deregister is called by Close.
func NewMR(m MR, deregister func() error) *MR {
	m.deregister = deregister
	return &m
}

// RemoteAddr is p's address in a peer's SendWR.RemoteAddr. p must lie in the arena.
func (m *MR) RemoteAddr(p []byte) uint64 { return m.Base + uint64(m.Arena.Offset(p)) }

// Close deregisters the memory. Posted work that still names it fails with
// LocalProtError, a peer's with RemoteAccessError. It must be called before the
// arena is closed, on the device's goroutine; closing the device does it too.
func (m *MR) Close() error { return m.deregister() }
