// Package softroce is a RoCEv2 device in user space: reliable-connected queue
// pairs in pure Go over any Link. It implements rdma.Device; docs/SOFTROCE.md
// describes what it does on the wire and why.
//
// A Device has no goroutine and no clock of its own. Everything happens in
// Progress, on the caller's goroutine and with the caller's time.
package softroce
