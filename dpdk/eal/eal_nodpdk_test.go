//go:build !dpdk || !cgo

package eal

import (
	"errors"
	"strings"
	"testing"
)

func TestNotBuiltSaysHow(t *testing.T) {
	errs := []error{Init()}
	_, err := NewVdev("net_null0", "", 1, Options{})
	errs = append(errs, err)
	_, err = Open("0000:01:00.0", 1, Options{})
	errs = append(errs, err)
	_, _, err = NewMemif(t.Context(), MemifConfig{})
	for _, err := range append(errs, err) {
		if !errors.Is(err, ErrNotBuilt) || !strings.Contains(err.Error(), "make build") {
			t.Errorf("got %v", err)
		}
	}
}
