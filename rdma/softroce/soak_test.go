//go:build soak

package softroce

import "testing"

func TestExactlyOnceSoak(t *testing.T) { exactlyOnce(t, 100_000) }

func TestBadNetsSoak(t *testing.T) { badNets(t, 100, 5000) }
