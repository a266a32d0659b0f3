package eal

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/millrace/millrace/dpdk"
)

// sharedDevices are those whose queues go to several loops.
var sharedDevices struct {
	mu     sync.Mutex
	byName map[string]*sharedDevice
}

type sharedDevice struct {
	links []*dpdk.Link
	next  int // links before it have, or had, a loop
	users int // links whose loops have not closed them
}

// Open is for dpdk.NewPortEventLoop: a link on the next free queue of the device.
// Loops of one process that name the same device share it; the first one that opens
// it says how many queues it has. It goes when all loops have closed their links. Any
// goroutine.
func (d *Device) Open(context.Context) (*dpdk.Link, error) {
	s := &sharedDevices
	s.mu.Lock()
	defer s.mu.Unlock()
	dev := s.byName[d.Name]
	if dev == nil {
		var err error
		if dev, err = d.start(); err != nil {
			return nil, err
		}
		if s.byName == nil {
			s.byName = map[string]*sharedDevice{}
		}
		s.byName[d.Name] = dev
	}
	if dev.next == len(dev.links) {
		return nil, fmt.Errorf("dpdk/eal: all %d queues of %s have a loop: give the address queues=%d, or more", len(dev.links), d.Name, len(dev.links)+1)
	}
	dev.users++
	dev.next++
	return dev.links[dev.next-1], nil
}

func (d *Device) start() (*sharedDevice, error) {
	if err := Init(d.ealArgs()...); err != nil {
		return nil, err
	}
	var ports []Port
	var err error
	if d.attached() {
		ports, err = Open(d.Name, d.Queues, d.Options)
	} else {
		ports, err = NewVdev(d.Name, d.Args, d.Queues, d.Options)
	}
	if err != nil {
		return nil, err
	}
	dev := &sharedDevice{}
	shared := make([]dpdk.Port, len(ports))
	for i, p := range ports {
		shared[i] = sharedPort{p, d.Name}
	}
	if dev.links, err = dpdk.NewLinks(shared, d.Link); err != nil {
		for _, p := range ports {
			err = errors.Join(err, p.Close())
		}
		return nil, err
	}
	return dev, nil
}

// sharedPort tells of its end.
type sharedPort struct {
	Port
	device string
}

// Close implements dpdk.Port. With the last loop's queue those that no loop has had
// are closed as well, and so the device.
func (p sharedPort) Close() error {
	err := p.Port.Close()
	s := &sharedDevices
	s.mu.Lock()
	dev := s.byName[p.device]
	var rest []*dpdk.Link
	if dev != nil {
		if dev.users--; dev.users == 0 {
			delete(s.byName, p.device)
			rest = dev.links[dev.next:]
		}
	}
	s.mu.Unlock()
	for _, l := range rest {
		err = errors.Join(err, l.Close())
	}
	return err
}
