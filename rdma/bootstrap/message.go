package bootstrap

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"unicode"
	"unicode/utf8"
)

// Bounds of the fields. A peer outside them is refused before anything is
// allocated for it.
const (
	MaxCredits      = 4096    // receive work requests granted
	MinReceiveBytes = 256     // receive buffer
	MaxReceiveBytes = 8 << 20 // receive buffer; largest message of rdma_rxe
	MaxMessageBytes = 1 << 30 // one message over all segments

	maxName       = 64  // device, label, fabric
	maxLinkParams = 16  // entries
	maxLinkKey    = 64  // bytes
	maxLinkValue  = 512 // bytes
	maxReason     = 1024
	maxPSN        = 1<<24 - 1
	maxQPN        = 1<<24 - 2 // 0xffffff is for multicast
)

// Instance is the random identity of a process, so that two connections of the
// same peer process can share a device.
type Instance [16]byte

// Self is this process's identity.
var Self = sync.OnceValue(func() (i Instance) {
	_, _ = rand.Read(i[:]) // crypto/rand.Read never fails
	return i
})

// String gives the number in hexadecimal digits.
func (i Instance) String() string { return hex.EncodeToString(i[:]) }

// MarshalText gives 32 hex digits.
func (i Instance) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText takes 32 hex digits.
func (i *Instance) UnmarshalText(b []byte) error {
	if len(b) != 2*len(i) {
		return fmt.Errorf("an instance has %d hex digits, not %d", 2*len(i), len(b))
	}
	_, err := hex.Decode(i[:], b)
	return err
}

// Hello opens the exchange.
type Hello struct {
	Instance Instance `json:"instance"`
	Loop     uint64   `json:"loop"`   // of the instance
	Fabric   string   `json:"fabric"` // both ends must use the same
	// Fallback says that this side would rather stay on the TCP connection than fail.
	Fallback bool `json:"-"` // in the frame's header
}

// Offer answers a Hello.
type Offer struct {
	Instance Instance `json:"instance"`
	Loop     uint64   `json:"loop"`
	// Shared says that an earlier connection uses the link already.
	Shared bool              `json:"shared"`
	Link   map[string]string `json:"link"` // how to join the link; the fabric's own
	QP     QP                `json:"qp"`
	// Fallback is the passive side\'s, as in Hello.
	Fallback bool `json:"-"`
}

// Accept answers an Offer.
type Accept struct {
	QP QP `json:"qp"`
	// Unsummed says that packets go without ICRC both ways: the Offer's link allowed it,
	// and this side takes it up. It is not sent otherwise: older peers do not know it.
	Unsummed bool `json:"unsummed,omitempty"`
}

// Ready says that the passive side's queue pair is connected.
type Ready struct{}

// Verified says that the active side's queue pair reached the passive one. It
// follows Ready where both sides allow a fall-back.
type Verified struct{}

// Fallback ends the exchange of a side that cannot, or will not, use RDMA. The
// other side repeats it, and from then on both speak the protocol of tcp:// on the
// connection; or it refuses.
type Fallback struct {
	Reason string `json:"reason"`
}

// Beat says that this side is alive.
type Beat struct{}

// Stale answers an Offer of a shared link that this side has given up.
type Stale struct{}

// Refusal ends the exchange with a reason for people to read.
type Refusal struct {
	Reason string `json:"reason"`
}

// Bye ends the connection. Orderly means that everything that was sent has been
// acknowledged.
type Bye struct {
	Orderly bool `json:"orderly"`
}

// QP is what the other end must know of a queue pair.
type QP struct {
	Device       string     `json:"device"`
	Label        string     `json:"label"`
	GID          netip.Addr `json:"gid"`
	UDPPort      uint16     `json:"udpPort"`
	QPN          uint32     `json:"qpn"`          // 24 bits; 0, 1 and 0xffffff are special (IBTA vol. 1, §3.5.10)
	PSN          uint32     `json:"psn"`          // 24 bits; of the first packet this end sends
	PathMTU      int        `json:"pathMTU"`      // bytes
	Credits      int        `json:"credits"`      // data receives granted at the start
	ReceiveBytes int        `json:"receiveBytes"` // one receive buffer
	MaxMessage   int        `json:"maxMessage"`   // largest message this end accepts
}

func (*Hello) kind() kind    { return kindHello }
func (*Offer) kind() kind    { return kindOffer }
func (*Accept) kind() kind   { return kindAccept }
func (*Ready) kind() kind    { return kindReady }
func (*Stale) kind() kind    { return kindStale }
func (*Refusal) kind() kind  { return kindRefusal }
func (*Bye) kind() kind      { return kindBye }
func (*Verified) kind() kind { return kindVerified }
func (*Fallback) kind() kind { return kindFallback }
func (*Beat) kind() kind     { return kindBeat }

func (*Verified) validate() error   { return nil }
func (m *Fallback) validate() error { return text("reason", m.Reason, maxReason) }
func (*Beat) validate() error       { return nil }

func (*Ready) validate() error { return nil }
func (*Stale) validate() error { return nil }
func (*Bye) validate() error   { return nil }

func (m *Hello) validate() error {
	if m.Instance == (Instance{}) {
		return errors.New("instance is missing")
	}
	return text("fabric", m.Fabric, maxName)
}

func (m *Offer) validate() error {
	if m.Instance == (Instance{}) {
		return errors.New("instance is missing")
	}
	if len(m.Link) > maxLinkParams {
		return fmt.Errorf("%d link parameters, limit %d", len(m.Link), maxLinkParams)
	}
	for k, v := range m.Link {
		if err := text("link parameter name", k, maxLinkKey); err != nil {
			return err
		}
		if v != "" {
			if err := text("link parameter "+k, v, maxLinkValue); err != nil {
				return err
			}
		}
	}
	return m.QP.validate()
}

func (m *Accept) validate() error  { return m.QP.validate() }
func (m *Refusal) validate() error { return text("reason", m.Reason, maxReason) }

func (q *QP) validate() error {
	if err := errors.Join(text("device", q.Device, maxName), text("label", q.Label, maxName)); err != nil {
		return err
	}
	switch {
	case !q.GID.IsValid() || q.GID.IsUnspecified() || q.GID.IsMulticast() || q.GID.Zone() != "" || q.GID.Is4In6():
		return fmt.Errorf("gid %v is not one host's address", q.GID)
	case q.UDPPort == 0:
		return errors.New("udpPort is 0")
	case q.QPN < 2 || q.QPN > maxQPN:
		return fmt.Errorf("qpn %d is outside 2..%d", q.QPN, maxQPN)
	case q.PSN > maxPSN:
		return fmt.Errorf("psn %d is outside 0..%d", q.PSN, maxPSN)
	case q.Credits < 1 || q.Credits > MaxCredits:
		return fmt.Errorf("credits %d is outside 1..%d", q.Credits, MaxCredits)
	case q.ReceiveBytes < MinReceiveBytes || q.ReceiveBytes > MaxReceiveBytes:
		return fmt.Errorf("receiveBytes %d is outside %d..%d", q.ReceiveBytes, MinReceiveBytes, MaxReceiveBytes)
	case q.MaxMessage < 1 || q.MaxMessage > MaxMessageBytes:
		return fmt.Errorf("maxMessage %d is outside 1..%d", q.MaxMessage, MaxMessageBytes)
	}
	switch q.PathMTU {
	case 256, 512, 1024, 2048, 4096:
		return nil
	}
	return fmt.Errorf("pathMTU %d is none of 256, 512, 1024, 2048, 4096", q.PathMTU)
}

// text checks a string that people will read in logs.
func text(name, s string, limit int) error {
	if s == "" || len(s) > limit || !utf8.ValidString(s) {
		return fmt.Errorf("%s is empty, longer than %d bytes or not UTF-8", name, limit)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%s %q holds characters that cannot be printed", name, s)
		}
	}
	return nil
}
