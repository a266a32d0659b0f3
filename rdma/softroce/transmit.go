package softroce

import "github.com/millrace/millrace/rdma"

var _ rdma.Transmitter = (*Device)(nil)

// Transmit implements rdma.Transmitter: it sends what was posted, and leaves
// acknowledgements, timers and receiving to the next Progress.
func (d *Device) Transmit(now int64) (work int) {
	if d.closed || d.active.first == nil {
		return 0
	}
	d.now = now
	work = d.transmit(now)
	d.sendFrames()
	return work
}

// Deadline implements rdma.Transmitter.
func (d *Device) Deadline(now int64) int64 {
	switch {
	case d.closed:
		return 0
	case d.active.first != nil && !d.starved || d.failed:
		return now
	}
	return d.deadline(now)
}
