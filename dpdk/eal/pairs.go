package eal

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	"github.com/millrace/millrace/dpdk"
)

// Pairs is dpdk.Pairs over libdpdk's net_memif. The other end may be of libdpdk or
// dpdk/memif: they speak one protocol. All serving Pairs of a process share one
// socket, which goes when the last of them is closed.
type Pairs struct {
	Options Options

	mu      sync.Mutex
	serving bool
}

var _ dpdk.Pairs = (*Pairs)(nil)

// Names of the parameters by which a port is described to the peer; those of
// dpdk/memif, which needs no id.
const (
	paramSocket = "memif-socket"
	paramSecret = "memif-secret"
	paramID     = "memif-id"
	paramFrame  = "memif-frame" // bytes of one frame of the serving side
)

// Name implements dpdk.Pairs.
func (*Pairs) Name() string { return "memif" }

// Serve implements dpdk.Pairs.
func (s *Pairs) Serve(ctx context.Context) (dpdk.Port, map[string]string, error) {
	s.mu.Lock()
	if !s.serving {
		s.serving = true
		_ = useSocket(1) // removes nothing
	}
	s.mu.Unlock()
	p, m, err := NewMemif(ctx, MemifConfig{Role: Server, Options: s.Options})
	if err != nil {
		return nil, nil, err
	}
	return p, map[string]string{
		paramSocket: m.Socket, paramSecret: m.Secret, paramID: strconv.FormatUint(uint64(m.ID), 10),
		paramFrame: strconv.Itoa(p.Info().MTU + etherHeaderBytes),
	}, nil
}

// Join implements dpdk.Pairs.
func (s *Pairs) Join(ctx context.Context, link map[string]string) (dpdk.Port, error) {
	m := Memif{Socket: link[paramSocket], Secret: link[paramSecret]}
	if v, ok := link[paramID]; ok {
		id, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("dpdk/eal: the peer described a memif with %s=%q: want a 32-bit number", paramID, v)
		}
		m.ID = uint32(id)
	}
	opts := s.Options
	if v, ok := link[paramFrame]; ok {
		// net_memif copies what a descriptor says into a frame of its own size
		// without looking: both ends must have the same.
		n, err := strconv.Atoi(v)
		if err != nil || n < minFrameBytes || n > maxFrameBytes {
			return nil, fmt.Errorf("dpdk/eal: the peer described a memif with %s=%q: want %d…%d bytes", paramFrame, v, minFrameBytes, maxFrameBytes)
		}
		opts.FrameBytes = n
	}
	p, _, err := NewMemif(ctx, MemifConfig{Role: Client, Socket: m.Socket, ID: m.ID, Secret: m.Secret, Options: opts})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Close implements dpdk.Pairs.
func (s *Pairs) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.serving {
		return nil
	}
	s.serving = false
	return useSocket(-1)
}
