package memif

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxRegions is how many regions a client may add; libdpdk's zero-copy mode uses
// one more per memory segment.
const maxRegions = 8

// Listener waits for clients on a socket. The socket file is readable and
// writable for its owner only.
type Listener struct {
	ln  *net.UnixListener
	cfg Config
}

// Listen makes the socket at path, which must not exist.
func Listen(path string, cfg Config) (*Listener, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("memif: listening on %s: %w (the path must be new, at most 107 bytes, in a directory that this user may write)", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("memif: %w", err), ln.Close())
	}
	return &Listener{ln: ln, cfg: cfg}, nil
}

// Path is the socket's path.
func (l *Listener) Path() string { return l.ln.Addr().String() }

// Accept waits for one client and sets the port up with it. A client that fails
// is refused with a reason and Accept returns the error; it can be called again.
// Ports stay when the listener closes.
func (l *Listener) Accept(ctx context.Context) (*Port, error) {
	_ = l.ln.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = l.ln.SetDeadline(time.Unix(1, 0)) })
	nc, err := l.ln.AcceptUnix()
	stop()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("memif: no client on %s: %w", l.Path(), err)
	}
	p := &Port{role: Server, cfg: l.cfg, ctl: control{nc}, rxEvent: -1, txEvent: -1}
	if err := p.serverHandshake(ctx); err != nil {
		_ = p.ctl.send(disconnect(err.Error()), -1)
		_ = p.release()
		return nil, err
	}
	p.start()
	return p, nil
}

// Close removes the socket.
func (l *Listener) Close() error { return l.ln.Close() }

func (p *Port) serverHandshake(ctx context.Context) error {
	defer p.ctl.guard(ctx)()
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
	*r = ringAt(mem, int(a.offset), a.log2)
	*event, *have = fd, true
	return nil
}
