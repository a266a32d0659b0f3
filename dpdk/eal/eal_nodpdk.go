//go:build !dpdk || !cgo

package eal

import "context"

// Available says whether this binary has libdpdk in it.
const Available = false

// Init returns ErrNotBuilt.
func Init(args ...string) error { return ErrNotBuilt }

// Version of libdpdk: none in this build.
func Version() string { return "" }

// Log of libdpdk: none in this build.
func Log() string { return "" }

// HeapBytes of libdpdk: none in this build.
func HeapBytes() uint64 { return 0 }

// NewVdev returns ErrNotBuilt.
func NewVdev(name, args string, queues int, opts Options) ([]Port, error) { return nil, ErrNotBuilt }

// Open returns ErrNotBuilt.
func Open(name string, queues int, opts Options) ([]Port, error) { return nil, ErrNotBuilt }

// NewMemif returns ErrNotBuilt.
func NewMemif(ctx context.Context, cfg MemifConfig) (Port, Memif, error) {
	return nil, Memif{}, ErrNotBuilt
}

// Ports are none in this build.
func Ports() (open []OpenPort, closed Stats) { return nil, Stats{} }

func useSocket(int) error { return nil }

// RemoveSocket does nothing in this build.
func RemoveSocket() error { return nil }
