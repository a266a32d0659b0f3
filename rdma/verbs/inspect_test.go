package verbs

import (
	"errors"
	"io/fs"
	"testing"
	"testing/fstest"
)

func TestInspectGivesAVerdictOnEachPort(t *testing.T) {
	s := twoNICs()
	s.uverbs("uverbs0", "mlx4_0")
	s.uverbs("uverbs1", "mlx5_1")
	ports, err := Inspect(fstest.MapFS(s), "6.1.0-x", func(name string) error {
		if name == "/dev/infiniband/uverbs1" {
			return fs.ErrPermission
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]error{}
	for i := range ports {
		got[ports[i].Port.Name()] = ports[i].Err
	}
	for name, want := range map[string]error{"mlx4_0:1": nil, "mlx4_0:2": ErrPortState, "mlx5_1": fs.ErrPermission, "mlx5_2": ErrGIDType, "old_0": ErrGIDType} {
		if err := got[name]; !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if len(got) != 5 {
		t.Errorf("%d ports", len(got))
	}
	if _, err := Inspect(fstest.MapFS{}, "6.1.0-x", nil); !errors.Is(err, ErrNoDevice) {
		t.Errorf("no device: %v", err)
	}
}
