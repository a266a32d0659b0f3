package memif

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/internal/rundir"
)

// Pairs is dpdk.Pairs over memif: the serving side makes a socket in a directory
// that only this user can enter, and a secret that only the peer is told.
type Pairs struct {
	mu   sync.Mutex
	dir  *rundir.Dir
	made int
}

var _ dpdk.Pairs = (*Pairs)(nil)

// Names of the parameters by which a port is described to the peer.
const (
	paramSocket = "memif-socket"
	paramSecret = "memif-secret"
	paramID     = "memif-id"    // absent: 0; libdpdk's interfaces share a socket
	paramFrame  = "memif-frame" // bytes of one frame of the serving side, which libdpdk does not check
)

// Name implements dpdk.Pairs.
func (*Pairs) Name() string { return "memif" }

// Serve implements dpdk.Pairs.
func (s *Pairs) Serve(context.Context) (dpdk.Port, map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == nil {
		dir, err := rundir.Make("memif")
		if err != nil {
			return nil, nil, fmt.Errorf("memif: %w", err)
		}
		s.dir = dir
	}
	s.made++
	path := filepath.Join(s.dir.Path, strconv.Itoa(s.made))
	secret := rand.Text()[:secretBytes-1]
	p, err := Serve(path, Config{Name: "millrace", Secret: secret})
	if err != nil {
		return nil, nil, err
	}
	return p, map[string]string{paramSocket: path, paramSecret: secret, paramFrame: strconv.Itoa(p.cfg.BufferBytes)}, nil
}

// Join implements dpdk.Pairs.
func (s *Pairs) Join(ctx context.Context, link map[string]string) (dpdk.Port, error) {
	path := link[paramSocket]
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%w: the peer described no memif socket: are both ends of one kind?", ErrProtocol)
	}
	cfg := Config{Name: "millrace", Secret: link[paramSecret]}
	if v, ok := link[paramID]; ok {
		id, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%w: the peer described a memif with %s=%q", ErrProtocol, paramID, v)
		}
		cfg.ID = uint32(id)
	}
	if v, ok := link[paramFrame]; ok {
		n, err := strconv.Atoi(v)
		if err != nil || n < minBufferBytes || n > maxBufferBytes {
			return nil, fmt.Errorf("%w: the peer described a memif with %s=%q", ErrProtocol, paramFrame, v)
		}
		cfg.BufferBytes = n
	}
	p, err := Connect(ctx, path, cfg)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: memif joins processes of one machine that share a file system; use rdma:// or tcp:// between machines", err)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Close implements dpdk.Pairs.
func (s *Pairs) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == nil {
		return nil
	}
	dir := s.dir
	s.dir = nil
	return dir.Remove()
}
