package memif

import (
	"context"
	"crypto/subtle"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxRegions is how many regions a client may add; libdpdk's zero-copy mode uses
// one more per memory segment.
const maxRegions = 8

// Serve makes a port that waits for one client on a new socket at path, readable
// and writable for this user only. The port is usable at once: until a client has
// come (see Up), bursts find nothing. Clients that fail the handshake are refused
// with a reason, which Err tells, and the port goes on waiting. The socket is gone
// once a client is there.
func Serve(path string, cfg Config) (*Port, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	p, err := newPort(Server, cfg)
	if err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err == nil {
		p.ln = ln
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		_ = p.release()
		return nil, fmt.Errorf("memif: listening on %s: %w (the path must be new, at most 107 bytes, in a directory that this user may write)", path, err)
	}
	p.watcher.Add(1)
	go p.accept()
	return p, nil
}

// accept waits for a good client and then watches over it.
func (p *Port) accept() {
	defer p.watcher.Done()
	for {
		nc, err := p.ln.AcceptUnix()
		if err != nil { // closed
			p.end(fmt.Errorf("memif: no client came: %w", err))
			return
		}
		p.mu.Lock()
		p.ctl = control{nc}
		if p.closing.Load() { // Close did not see this one
			_ = nc.Close()
		}
		p.mu.Unlock()
		if err = p.serverHandshake(); err == nil {
			_ = p.ln.Close()
			p.start()
			p.watch()
			return
		}
		_ = p.ctl.send(disconnect(err.Error()), -1)
		_ = nc.Close()
		p.forgetClient()
		p.mu.Lock()
		p.refused = err
		p.mu.Unlock()
	}
}

// forgetClient undoes what a failed handshake had set up.
func (p *Port) forgetClient() {
	for _, r := range p.regions {
		r.close()
	}
	p.regions = nil
	closeFD(p.txEvent)
	closeFD(p.rxEvent)
	p.txEvent, p.rxEvent = -1, -1
}

func (p *Port) serverHandshake() error {
	defer p.ctl.guard(context.Background())()
	err := p.ctl.send(hello{
		name: p.cfg.Name, minVersion: protocolVersion, maxVersion: protocolVersion, maxRegion: maxRegions - 1, maxLog2Ring: maxRingLog2,
	}.encode(), -1)
	if err != nil {
		return err
	}
	m, err := p.ctl.expect(typeInit)
	if err != nil {
		return err
	}
	i := decodeInit(m)
	switch {
	case i.version != protocolVersion:
		return fmt.Errorf("%w: client version %#x, want %#x", ErrProtocol, i.version, protocolVersion)
	case i.mode != modeEthernet:
		return fmt.Errorf("%w: only Ethernet mode is supported", ErrProtocol)
	case i.id != p.cfg.ID:
		return fmt.Errorf("%w: no interface with id %d here", ErrProtocol, i.id)
	case subtle.ConstantTimeCompare([]byte(i.secret), []byte(p.cfg.Secret)) != 1:
		return fmt.Errorf("%w: incorrect secret", ErrProtocol)
	}
	p.peer = i.name
	if err := p.ctl.send(newMessage(typeAck), -1); err != nil {
		return err
	}
	haveRx, haveTx := false, false
	for {
		m, fd, err := p.ctl.recv()
		if err != nil {
			return err
		}
		switch m.kind() {
		case typeAddRegion:
			err = p.addRegion(decodeAddRegion(m), fd)
		case typeAddRing:
			a := decodeAddRing(m)
			if a.flags&ringFlagClientToServer != 0 {
				err = p.addRing(a, fd, &p.rx, &p.rxEvent, &haveRx)
			} else {
				err = p.addRing(a, fd, &p.tx, &p.txEvent, &haveTx)
			}
		case typeConnect:
			closeFD(fd)
			if !haveRx || !haveTx {
				return fmt.Errorf("%w: CONNECT before both rings were added", ErrProtocol)
			}
			p.rx.maskInterrupt()
			return p.ctl.send(named(typeConnected, p.cfg.Name), -1)
		case typeDisconnect:
			closeFD(fd)
			return fmt.Errorf("%w: %s", ErrRefused, disconnectReason(m))
		default:
			closeFD(fd)
			return fmt.Errorf("%w: unexpected %s", ErrProtocol, kindName(m.kind()))
		}
		if err != nil {
			return err
		}
		if err := p.ctl.send(newMessage(typeAck), -1); err != nil {
			return err
		}
	}
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}

func (p *Port) addRegion(a addRegion, fd int) error {
	if fd < 0 {
		return fmt.Errorf("%w: ADD_REGION without a file descriptor", ErrProtocol)
	}
	if int(a.index) != len(p.regions) || len(p.regions) == maxRegions {
		closeFD(fd)
		return fmt.Errorf("%w: region index %d, want %d of at most %d", ErrProtocol, a.index, len(p.regions), maxRegions)
	}
	r, err := mapPeer(fd, a.size)
	if err != nil {
		return err
	}
	p.regions = append(p.regions, r)
	return nil
}

func (p *Port) addRing(a addRing, fd int, r *ring, event *int, have *bool) error {
	if fd < 0 {
		return fmt.Errorf("%w: ADD_RING without a file descriptor", ErrProtocol)
	}
	reject := func(format string, args ...any) error {
		closeFD(fd)
		return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)
	}
	switch {
	case a.index != 0 || *have:
		return reject("more than one ring in a direction")
	case a.log2 == 0 || a.log2 > maxRingLog2:
		return reject("ring of 2^%d slots, allowed are 2^1 to 2^%d", a.log2, maxRingLog2)
	case int(a.region) >= len(p.regions):
		return reject("ring in unknown region %d", a.region)
	}
	mem := p.regions[a.region].mem
	if a.offset%4 != 0 || uint64(a.offset)+uint64(ringBytes(1<<a.log2)) > uint64(len(mem)) {
		return reject("ring at offset %d with 2^%d slots does not fit its region of %d bytes", a.offset, a.log2, len(mem))
	}
	// The loop reads and writes it, and must not wait for the peer there.
	if err := unix.SetNonblock(fd, true); err != nil {
		return reject("the ring's descriptor cannot be made non-blocking: %v", err)
	}
	*r = ringAt(mem, int(a.offset), a.log2)
	*event, *have = fd, true
	return nil
}
