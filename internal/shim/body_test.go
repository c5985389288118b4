package shim

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"batchtask.dev/operator/internal/qcloud"
)

func receive(b *bodies, from io.Reader) (*body, *http.Request) {
	r := httptest.NewRequest(http.MethodPost, "/", from)
	return b.receive(httptest.NewRecorder(), r), r
}

func TestBodiesAreRead(t *testing.T) {
	b := newBodies(NewMetrics(prometheus.NewRegistry()), 1<<20)
	for _, size := range []int{0, 1, bodyStep - 1, bodyStep, bodyStep + 1, qcloud.MaxBytes} {
		sent := bytes.Repeat([]byte("x"), size)
		one, r := receive(b, bytes.NewReader(sent))
		got, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("of %d bytes %d are read: %v", size, len(got), err)
		}
		one.release()
	}
	one, r := receive(b, strings.NewReader(strings.Repeat("x", 2*qcloud.MaxBytes)))
	if got, err := io.ReadAll(r.Body); err != nil || len(got) != qcloud.MaxBytes+1 {
		t.Errorf("of too long a body %d bytes are read: %v", len(got), err)
	}
	one.release()
	broken := errors.New("cut")
	one, r = receive(b, io.MultiReader(strings.NewReader("abc"), failing{broken}))
	if got, err := io.ReadAll(r.Body); !errors.Is(err, broken) || string(got) != "abc" {
		t.Errorf("of a body that ends early %q is read: %v", got, err)
	}
	one.release()
	if b.left != 1<<20 || b.arriving.Len() != 0 {
		t.Errorf("in the end %d bytes are left, and %d bodies arrive", b.left, b.arriving.Len())
	}
}

// Where memory is short, what has been on its way longest gives way to what arrives at once.
func TestSlowBodiesGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const room = 8
		b := newBodies(NewMetrics(prometheus.NewRegistry()), room*bodyStep)
		slow := make([]*io.PipeWriter, room)
		failed := make(chan error, room)
		for i := range slow {
			from, to := io.Pipe()
			slow[i] = to
			go func() {
				one, r := receive(b, from)
				_, err := io.ReadAll(r.Body)
				one.release()
				failed <- err
			}()
			_, _ = to.Write([]byte("x"))
			synctest.Wait()
			time.Sleep(time.Second)
		}
		if b.left != 0 {
			t.Fatalf("%d bytes are left, which is no test", b.left)
		}
		one, r := receive(b, strings.NewReader(strings.Repeat("y", 3*bodyStep-1)))
		if got, err := io.ReadAll(r.Body); err != nil || len(got) != 3*bodyStep-1 {
			t.Errorf("of a body that is there at once %d bytes are read: %v", len(got), err)
		}
		for i, to := range slow {
			_ = to.Close()
			synctest.Wait()
			err := <-failed
			if gaveWay := errors.Is(err, errGaveWay); gaveWay != (i < 3) {
				t.Errorf("the slow body %d ends with %v", i, err)
			}
		}
		one.release()
		if b.left != room*bodyStep {
			t.Errorf("in the end %d bytes are left, want %d", b.left, room*bodyStep)
		}
	})
}

func TestBodiesOfOneAccount(t *testing.T) {
	b := newBodies(NewMetrics(prometheus.NewRegistry()), 64*bodyStep)
	held := 0
	for range 64 {
		one, _ := receive(b, strings.NewReader("x"))
		if !one.belongsTo("greedy") {
			one.release()
			break
		}
		held++
	}
	if held < 2 || held > 8 {
		t.Errorf("one account holds %d of 64, want at most an eighth", held)
	}
	one, _ := receive(b, strings.NewReader("x"))
	if !one.belongsTo("victim") {
		t.Error("another account is refused")
	}
}
