package broker

import (
	"time"

	"github.com/millrace/millrace/hugepages"
)

// Peer is a connection as the storage core sees it. The core calls it only from
// within its own methods. Send and SetReading must not call the session back;
// Close may call Session.Close.
type Peer interface {
	// Send queues b as one message and takes the reference, or returns an error and
	// leaves it: netpoll.ErrBackpressure if the queue is full, and then the owner
	// of the connection calls Session.Writable when it is not any more.
	Send(b *hugepages.Buf) error
	// SetReading pauses and resumes the delivery of requests. A burst that was
	// already read may still come.
	SetReading(on bool)
	// Close ends the connection after what was sent has left. The owner calls
	// Session.Close then.
	Close(reason error)
}

// Progress is what a Peer implements besides if it can tell how far its queue got.
// A connection whose peer takes nothing for a minute is closed then; else it
// keeps the memory of its answers for as long as it likes.
type Progress interface {
	// Progress returns how many bytes are queued, and a number that grows whenever
	// some have left.
	Progress() (queued int, sent uint64)
}

// Scheduler runs functions under the exclusion that the core needs: never beside
// each other or beside any method of the core and its sessions.
type Scheduler interface {
	// Submit runs fn soon. Any goroutine. An error means that it will not be run:
	// netpoll.ErrBackpressure if that may change.
	Submit(fn func()) error
	// After runs fn after d, unless the returned function was called before. Called
	// by the core.
	After(d time.Duration, fn func()) (stop func())
}
