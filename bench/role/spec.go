package role

import (
	"time"

	"github.com/millrace/millrace/bench/measure"
)

// Spec is all that a child needs to know.
type Spec struct {
	Role string `json:"role"` // name in the child's table of roles
	// URL is where to listen, or where to connect.
	URL string `json:"url,omitempty"`
	// Device of the transport under test; empty: its default.
	Device string `json:"device,omitempty"`
	// Upstream is where a proxy finds its broker.
	Upstream string `json:"upstream,omitempty"`
	Idle     string `json:"idle,omitempty"`

	// Messages: Input is a file of one message per line; else Size bytes each;
	// else the sample.
	Input string `json:"input,omitempty"`
	Size  int    `json:"size,omitempty"`

	Warmup      time.Duration `json:"warmup,omitempty"`
	Duration    time.Duration `json:"duration,omitempty"`
	Rate        float64       `json:"rate,omitempty"`       // messages per second, all connections together
	Window      int           `json:"window,omitempty"`     // messages in flight
	QueueBytes  int           `json:"queueBytes,omitempty"` // bound on what one connection queues; 0: the loop's default
	Connections int           `json:"connections,omitempty"`
	Batched     bool          `json:"batched,omitempty"`
	FlushEach   bool          `json:"flushEach,omitempty"`
	Blocking    bool          `json:"blocking,omitempty"` // Go's blocking sockets, no event loop
	SendRT      bool          `json:"sendRT,omitempty"`   // a producer reports Result.SendRT
	DataDir     string        `json:"dataDir,omitempty"`
	Durability  string        `json:"durability,omitempty"`
	Count       int64         `json:"count,omitempty"`

	Codec        string `json:"codec,omitempty"`
	Operation    string `json:"operation,omitempty"`
	BatchRecords int    `json:"batchRecords,omitempty"`
	CRC          bool   `json:"crc,omitempty"`
	Compression  string `json:"compression,omitempty"`
	Workers      int    `json:"workers,omitempty"`
}

// Command is what the parent tells a child after its Spec.
type Command string

const (
	// Start begins the warm-up and then the measurement; clients only.
	Start Command = "start"
	// Mark ends the stretch that busy share and SendRT cover, and begins the next.
	Mark Command = "mark"
	// Verify makes a client check what arrived where.
	Verify Command = "verify"
	// Stop ends the role in order.
	Stop Command = "stop"
)

// Kinds of events.
const (
	Ready     = "ready"     // accepts connections, or is connected
	Measuring = "measuring" // the warm-up is over
	Measured  = "measured"  // with Result
	Verified  = "verified"  // with Result
	Marked    = "marked"    // with BusyShare and SendRT of the stretch that ended
	Stopped   = "stopped"   // with Error where the end was not in order
	Failed    = "failed"    // with Error; the child exits
	NotHere   = "not-here"  // with Error and Fix; the child exits
)

// Event is what a child tells the parent.
type Event struct {
	Kind      string   `json:"kind"`
	URL       string   `json:"url,omitempty"`
	Device    string   `json:"device,omitempty"`
	Label     string   `json:"label,omitempty"`
	Reason    string   `json:"reason,omitempty"` // why this device; see netpoll.Transport
	Error     string   `json:"error,omitempty"`
	Fix       string   `json:"fix,omitempty"`
	Result    *Result  `json:"result,omitempty"`
	BusyShare *float64 `json:"busyShare,omitempty"`
	// SendRT is a proxy's own measurement of proxy → broker → proxy.
	SendRT *measure.Quantiles `json:"sendRT,omitempty"`
}

// Result is what a client measured.
type Result struct {
	Messages   int64              `json:"messages"`
	Bytes      int64              `json:"bytes"` // payload
	Elapsed    time.Duration      `json:"elapsed"`
	RT         *measure.Quantiles `json:"rt,omitempty"`
	SendRT     *measure.Quantiles `json:"sendRT,omitempty"` // from the sending of a batch to its acknowledgement
	Lost       *int64             `json:"lost,omitempty"`
	Duplicated *int64             `json:"duplicated,omitempty"`
	Sustained  *bool              `json:"sustained,omitempty"`
	BusyShare  *float64           `json:"busyShare,omitempty"`
	// OverheadBytes is what a codec adds to each record.
	OverheadBytes float64 `json:"overheadBytes,omitempty"`
}
