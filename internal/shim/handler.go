package shim

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/qcloud"
)

// Defaults of Options.
const (
	DefaultTimeout     = 15 * time.Second
	DefaultMaxInFlight = 256
)

// Options are what a [Handler] works with.
type Options struct {
	// Client reads from and writes to the API server, past any cache. Required.
	Client client.Client
	// Shadows are those of all devices. Required.
	Shadows Shadows
	// Publisher sends messages to devices. Without one (nil) the actions that send any
	// are not known.
	Publisher Publisher
	// Verifier says who calls. Required.
	Verifier *qcloud.Verifier
	// Clock is the time. Required.
	Clock clock.PassiveClock
	// Timeout bounds each call, once its body has been read, to its answer; a
	// positive time ([DefaultTimeout]).
	Timeout time.Duration
	// MaxInFlight is how many calls are worked on at once; others wait, with bodies of
	// up to 64 KiB ([DefaultMaxInFlight]). At most 16 calls have a longer one.
	MaxInFlight int
	// Log gets one line a call, without anything that callers send to devices.
	Log logr.Logger
	// Metrics count the calls. Required.
	Metrics *Metrics
}

// Handler serves both versions of the API, each at its path.
type Handler struct {
	Options
	tasks   tasks
	devices devices
	slots   chan struct{}
	long    chan struct{} // calls with long bodies
}

var _ http.Handler = (*Handler)(nil)

// NewHandler returns a Handler.
func NewHandler(options Options) *Handler {
	if options.Timeout == 0 {
		options.Timeout = DefaultTimeout
	}
	if options.MaxInFlight == 0 {
		options.MaxInFlight = DefaultMaxInFlight
	}
	return &Handler{
		Options: options,
		tasks:   tasks{client: options.Client, clock: options.Clock},
		devices: devices{
			products: product.Finder{Reader: options.Client}, shadows: options.Shadows,
			publisher: options.Publisher, clock: options.Clock,
		},
		slots: make(chan struct{}, options.MaxInFlight),
		long:  make(chan struct{}, maxLong),
	}
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case qcloud.V2.Path():
		h.serve(w, r, qcloud.V2)
	case qcloud.V3.Path():
		h.serve(w, r, qcloud.V3)
	default:
		http.NotFound(w, r)
	}
}

// exchange is what is known of a call and its answer, for the log.
type exchange struct {
	version   qcloud.Version
	requestID string
	action    string // as the caller wrote it
	known     bool   // the version has the action
	caller    qcloud.Caller
	taskID    string
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, version qcloud.Version) {
	started := h.Clock.Now()
	x := &exchange{version: version, requestID: string(uuid.NewUUID())}
	result, err := h.answer(r, x)
	var writing error
	if err != nil {
		err = qcloud.AsError(err).In(x.action)
		writing = qcloud.WriteError(w, version, x.requestID, err)
	} else {
		writing = qcloud.WriteResult(w, version, x.requestID, result)
	}
	h.record(r, x, err, writing, h.Clock.Since(started))
}

// answer carries the call out. A panic is an internal error of this call alone.
func (h *Handler) answer(r *http.Request, x *exchange) (result qcloud.Result, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			h.Log.Error(fmt.Errorf("panic: %v", cause), "Panic while serving a call", "requestId", x.requestID, "stack", string(debug.Stack()))
			result, err = nil, &qcloud.Error{Kind: qcloud.KindInternal, Err: fmt.Errorf("panic: %v", cause)}
		}
	}()
	received, err := h.receive(r)
	if err != nil {
		return nil, err
	}
	defer received()
	if err := h.enter(r.Context()); err != nil {
		return nil, err
	}
	defer h.leave()
	call, err := qcloud.Read(x.version, r)
	if err != nil {
		return nil, err
	}
	x.action, x.known = call.Action, call.Known()
	if x.caller, err = h.Verifier.Verify(call); err != nil {
		x.caller = qcloud.Caller{SecretID: call.SecretID}
		return nil, err
	}
	if h.Publisher == nil && x.known && needsBroker(x.action) {
		return nil, qcloud.Errorf(qcloud.KindUnknownAction, "Action", "%q needs a broker, and none is configured", x.action)
	}
	request, err := call.Decode()
	if err != nil {
		return nil, err
	}
	// A caller that hangs up has its call carried out all the same: whether its task
	// exists must not depend on the moment, and the log tells which it is.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), h.Timeout)
	defer cancel()
	result, err = h.do(ctx, account{namespace: x.caller.Account, version: x.version}, request)
	if created, ok := result.(qcloud.CreateTaskResult); ok {
		x.taskID = created.TaskID
	}
	return result, err
}

// do returns a *[qcloud.Error] for what is the caller's fault; any other error is
// internal.
func (h *Handler) do(ctx context.Context, a account, request qcloud.Request) (qcloud.Result, error) {
	switch request := request.(type) {
	case *qcloud.GetDeviceShadow:
		return h.devices.get(ctx, a, request)
	case *qcloud.UpdateDeviceShadow:
		return h.devices.update(ctx, a, request)
	case *qcloud.Publish:
		return h.devices.publish(ctx, a, request)
	default:
		return h.tasks.do(ctx, a, request)
	}
}

// enter waits for one of the places of calls that are worked on at once.
func (h *Handler) enter(ctx context.Context) error {
	err := h.take(ctx, h.slots, "calls")
	if err == nil {
		h.Metrics.inFlight.Inc()
	}
	return err
}

// take waits for one of the places of what is said.
func (h *Handler) take(ctx context.Context, places chan<- struct{}, what string) error {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for one of %d %s to end: %w", cap(places), what, ctx.Err())
	}
}

func (h *Handler) leave() {
	h.Metrics.inFlight.Dec()
	<-h.slots
}

// record writes the access log and counts the call. Neither has a parameter of the
// call but its action: the others may hold what is meant for devices alone.
func (h *Handler) record(r *http.Request, x *exchange, err, writing error, took time.Duration) {
	code, action := "0", "unknown"
	if err != nil {
		code = qcloud.AsError(err).Code(x.version)
	}
	if x.known {
		action = x.action
	}
	h.Metrics.observe(action, x.version, code, took)
	fields := []any{
		"requestId", x.requestID, "version", x.version.String(), "action", cut(x.action), "code", code,
		"secretId", cut(x.caller.SecretID), "account", x.caller.Account, "remote", r.RemoteAddr,
		"milliseconds", float64(took.Microseconds()) / 1000,
	}
	if x.taskID != "" {
		fields = append(fields, "taskId", x.taskID)
	}
	switch {
	case err != nil && qcloud.AsError(err).Kind == qcloud.KindInternal:
		h.Log.Error(err, "Call failed", fields...)
	case writing != nil:
		h.Log.Info("Call answered, and the caller has gone", append(fields, "detail", writing.Error())...)
	default:
		h.Log.Info("Call", fields...)
	}
}

// cut shortens for the log what a caller may have made long.
func cut(text string) string {
	const most = 64
	if len(text) <= most {
		return text
	}
	return text[:most] + "…"
}
