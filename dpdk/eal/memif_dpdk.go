//go:build dpdk && cgo

package eal

// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"
	"unsafe"

	"github.com/millrace/millrace/dpdk/internal/rundir"
)

// listener is this process's one listening memif socket. net_memif never closes a
// listening descriptor once its last interface is removed, so one interface that
// is never started (the anchor, id 0) keeps it in use as long as anybody serves.
// Server interfaces share it and differ by id and secret. Once it is removed, the
// next server interface makes another.
var listener struct {
	mu     sync.Mutex
	dir    *rundir.Dir // nil: not made yet, or removed
	anchor string      // its device
	users  int         // Pairs that serve
	nextID uint32
	nextNo uint32 // numbers the devices of this process
}

// handshakePatience bounds a client's wait for the server's answers.
const handshakePatience = 10 * time.Second

// NewMemif makes one net_memif interface. A server interface listens as soon as
// NewMemif returns, and the Memif tells a client where; it comes up (Up) when the
// client has connected. A client interface is up when NewMemif returns. The socket
// lies in a private directory of the server process; RemoveSocket removes it.
func NewMemif(ctx context.Context, cfg MemifConfig) (Port, Memif, error) {
	if err := Init(); err != nil {
		return nil, Memif{}, err
	}
	opts, err := cfg.Options.withDefaults()
	if err != nil {
		return nil, Memif{}, err
	}
	opts.Ring = 1 << log2ceil(opts.Ring)
	m := Memif{Socket: cfg.Socket, ID: cfg.ID, Secret: cfg.Secret}
	if cfg.Role == Server {
		if m, err = newServer(); err != nil {
			return nil, Memif{}, err
		}
	}
	if err := validMemif(m); err != nil {
		return nil, Memif{}, err
	}
	listener.mu.Lock()
	name := fmt.Sprintf("net_memif%d", listener.nextNo)
	listener.nextNo++
	listener.mu.Unlock()
	args := memifArgs(cfg.Role, m, opts)
	ports, err := open(name, &args, 1, opts, &m, cfg.Role)
	if err != nil {
		return nil, Memif{}, err
	}
	p := ports[0]
	if cfg.Role == Client {
		// A client that goes away before the server greeted it makes net_memif
		// close a descriptor that its interrupt thread still waits on, and libdpdk
		// aborts the server process for that.
		if err := waitUp(ctx, p); err != nil {
			return nil, Memif{}, errors.Join(fmt.Errorf("dpdk/eal: the server at %s does not complete the memif handshake: %w (libdpdk: %s)", m.Socket, err, Log()), p.Close())
		}
	}
	return p, m, nil
}

func waitUp(ctx context.Context, p Port) error {
	ctx, cancel := context.WithTimeout(ctx, handshakePatience)
	defer cancel()
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for !p.Up() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// newServer names a server interface on the process's listening socket.
func newServer() (Memif, error) {
	listener.mu.Lock()
	defer listener.mu.Unlock()
	if listener.dir == nil {
		dir, err := rundir.Make("net_memif")
		if err != nil {
			return Memif{}, fmt.Errorf("dpdk/eal: %w", err)
		}
		name := fmt.Sprintf("net_memif_anchor%d", listener.nextNo)
		listener.nextNo++
		if err := anchor(name, Memif{Socket: socketIn(dir), Secret: secret()}); err != nil {
			return Memif{}, errors.Join(err, dir.Remove())
		}
		listener.dir, listener.anchor = dir, name
	}
	listener.nextID++ // 0 is the anchor's
	return Memif{Socket: socketIn(listener.dir), ID: listener.nextID, Secret: secret()}, nil
}

func socketIn(d *rundir.Dir) string { return filepath.Join(d.Path, "memif.sock") }

// secret is 115 random bits in as many bytes as net_memif compares.
func secret() string { return rand.Text()[:23] }

func anchor(device string, m Memif) error {
	if err := validMemif(m); err != nil {
		return err
	}
	opts, _ := Options{}.withDefaults()
	name, args := C.CString(device), C.CString(memifArgs(Server, m, opts))
	defer C.free(unsafe.Pointer(name))
	defer C.free(unsafe.Pointer(args))
	eal.mu.Lock()
	defer eal.mu.Unlock()
	Log()
	if rc := C.mr_memif_anchor(name, args); rc != 0 {
		return &Error{Op: "rte_eal_hotplug_add", Dev: "net_memif", Err: cerror(rc), Log: Log()}
	}
	return nil
}

// RemoveSocket removes the directory of this process's listening memif socket: at
// the end of the process, or where no client is awaited any more. Server interfaces
// that have no client yet will get none; one made later listens on a new socket.
// libdpdk keeps a descriptor of the old one.
func RemoveSocket() error {
	listener.mu.Lock()
	defer listener.mu.Unlock()
	return removeSocketLocked()
}

func removeSocketLocked() error {
	if listener.dir == nil {
		return nil
	}
	dir := listener.dir
	listener.dir = nil
	return errors.Join(unanchor(listener.anchor, socketIn(dir)), dir.Remove())
}

func unanchor(device, socket string) error {
	name, path := C.CString(device), C.CString(socket)
	defer C.free(unsafe.Pointer(name))
	defer C.free(unsafe.Pointer(path))
	eal.mu.Lock()
	defer eal.mu.Unlock()
	Log()
	if rc := C.mr_memif_unanchor(name, path); rc != 0 {
		return &Error{Op: "closing the listening socket of", Dev: device, Err: cerror(rc), Log: Log()}
	}
	return nil
}

// useSocket counts Pairs that serve; the socket goes with the last.
func useSocket(change int) error {
	listener.mu.Lock()
	defer listener.mu.Unlock()
	if listener.users += change; listener.users > 0 {
		return nil
	}
	return removeSocketLocked()
}
