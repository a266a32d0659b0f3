package main

import (
	"context"
	"os"
	"strings"
	"testing"
)

// The test's own program is its servers and clients, as main's is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serve {
		main()
	}
	os.Exit(m.Run())
}

// Every server answers every workload, with what was sent; speed is not judged.
func TestEveryServer(t *testing.T) {
	for _, workload := range []string{"echo", "echo16", "stream"} {
		t.Run(workload, func(t *testing.T) {
			err := run(context.Background(), []string{"-workload", workload, "-size", "128,70000", "-connections", "1,3", "-repeat", "1", "-duration", "50ms", "-warmup", "10ms"})
			if err != nil && strings.Contains(err.Error(), "need one each") {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestBadArguments(t *testing.T) {
	for _, args := range []string{"-size=0", "-connections=x", "-workload=echo,nonsense", "-repeat=0"} {
		if err := run(context.Background(), []string{args}); err == nil {
			t.Errorf("%s passed", args)
		}
	}
}
