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
