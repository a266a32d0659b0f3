//go:build !verbs || !cgo

package verbs

import "github.com/millrace/millrace/rdma"

// Available says whether this binary can use libibverbs.
const Available = false

func load() error { return ErrNotBuilt }

func open(*Port, GID, Options) (rdma.Device, error) { return nil, ErrNotBuilt }
