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
	// MaxInFlight is how many calls are worked on at once ([DefaultMaxInFlight]); of one
	// account an eighth at most, of one product of it a quarter of that. Others wait.
	MaxInFlight int
	// Failures is how many calls a second of one address may fail before it is known whose
	// they are ([DefaultFailures]). What is beyond is told and logged in less detail.
	Failures float64
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
	bodies  *bodies
	places  *places
	peers   *peers
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
	if options.Failures == 0 {
		options.Failures = DefaultFailures
	}
	return &Handler{
		Options: options,
		tasks:   tasks{client: options.Client, clock: options.Clock, listing: newListing(options.Client, options.Clock, options.Timeout)},
		devices: devices{
			products: product.Finder{Reader: options.Client}, shadows: options.Shadows,
			publisher: options.Publisher, clock: options.Clock,
		},
		bodies: newBodies(options.Metrics, maxBodies),
		places: newPlaces(options.Metrics, options.MaxInFlight),
		peers:  newPeers(options.Clock, options.Failures),
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
	replayed  bool // answered as an equal call before it
	untold    int  // failures of the same address before it that are not in the log
	quiet     bool // one failure too many of its address
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, version qcloud.Version) {
	started := h.Clock.Now()
	x := &exchange{version: version, requestID: string(uuid.NewUUID())}
	result, err := h.answer(w, r, x)
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
func (h *Handler) answer(w http.ResponseWriter, r *http.Request, x *exchange) (result qcloud.Result, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			h.Log.Error(fmt.Errorf("panic: %v", cause), "Panic while serving a call", "requestId", x.requestID, "stack", string(debug.Stack()))
			result, err = nil, &qcloud.Error{Kind: qcloud.KindInternal, Err: fmt.Errorf("panic: %v", cause)}
		}
	}()
	body := h.bodies.receive(w, r)
	defer body.release()
	call, err := h.identify(r, body, x)
	if err != nil {
		return nil, err
	}
	// A caller that hangs up has its call carried out all the same: whether its task
	// exists must not depend on the moment, and the log tells which it is.
	ctx := context.WithoutCancel(r.Context())
	if x.caller.Earlier != nil {
		x.replayed = true
		h.Metrics.replayed.Inc()
		// The body has done its work. An account could else fill the memory of all bodies with
		// calls that wait for one of its own, beside its share.
		r.Body = http.NoBody
		body.release()
		ctx, cancel := context.WithTimeout(ctx, 2*h.Timeout)
		defer cancel()
		return x.caller.Earlier.Wait(ctx)
	}
	// Equal calls wait for the outcome, so there must be one whatever happens.
	outcome := error(&qcloud.Error{Kind: qcloud.KindInternal})
	defer func() { x.caller.Outcome.Settle(result, outcome) }()
	result, outcome = h.carryOut(ctx, call, body, x)
	return result, outcome
}

// identify reads the call and finds out whose it is.
func (h *Handler) identify(r *http.Request, body *body, x *exchange) (*qcloud.Call, error) {
	peer := h.peers.of(r.RemoteAddr)
	call, err := h.verifyInTurn(r, body, peer, x)
	if err == nil || isTheirs(err) {
		return call, err
	}
	if x.untold, x.quiet = h.peers.failed(peer); x.quiet {
		h.Metrics.refused.WithLabelValues(limitFailures).Inc()
		return nil, &qcloud.Error{Kind: qcloud.KindRateLimited, Detail: "too many calls of this address have failed; one that is signed right is served", Err: err}
	}
	return nil, err
}

// verifyInTurn gives the turn back also where the program has a fault. Whoever hangs up while
// waiting has failed like others: it is not our fault, and must not fill the log.
func (h *Handler) verifyInTurn(r *http.Request, body *body, from *peer, x *exchange) (*qcloud.Call, error) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	over := body.waits(cancel)
	done, err := h.peers.turn(ctx, from)
	gaveWay := over()
	if err == nil {
		defer done()
	}
	switch {
	case gaveWay != nil:
		return nil, &qcloud.Error{Kind: qcloud.KindBadRequest, Detail: gaveWay.Error(), Err: gaveWay}
	case err != nil:
		return nil, &qcloud.Error{Kind: qcloud.KindBadRequest, Detail: "hung up while waiting among the calls of an address of which many fail", Err: err}
	default:
		return h.verify(r, x)
	}
}

func (h *Handler) verify(r *http.Request, x *exchange) (*qcloud.Call, error) {
	call, err := qcloud.Read(x.version, r)
	if err != nil {
		return nil, err
	}
	x.action, x.known = call.Action, call.Known()
	if x.caller, err = h.Verifier.Verify(call); err != nil {
		x.caller = qcloud.Caller{SecretID: call.SecretID}
		if qcloud.AsError(err).Kind == qcloud.KindRateLimited {
			h.Metrics.refused.WithLabelValues(limitRate).Inc()
		}
		return nil, err
	}
	return call, nil
}

// isTheirs reports whether only who has the key can be refused like this.
func isTheirs(err error) bool {
	switch qcloud.AsError(err).Kind {
	case qcloud.KindRateLimited, qcloud.KindExpired, qcloud.KindReplay:
		return true
	default:
		return false
	}
}

// carryOut does what the call of an account asks for, once there is a place for it.
func (h *Handler) carryOut(ctx context.Context, call *qcloud.Call, body *body, x *exchange) (qcloud.Result, error) {
	if h.Publisher == nil && x.known && needsBroker(x.action) {
		return nil, qcloud.Errorf(qcloud.KindUnknownAction, "Action", "%q needs a broker, and none is configured", x.action)
	}
	request, err := call.Decode()
	if err != nil {
		return nil, err
	}
	if !body.belongsTo(x.caller.Account) {
		h.Metrics.refused.WithLabelValues(limitBodies).Inc()
		return nil, qcloud.Errorf(qcloud.KindRateLimited, "", "the calls of this account that are being worked on are too large together: slow down")
	}
	waiting, cancelWaiting := context.WithTimeout(ctx, h.Timeout)
	defer cancelWaiting()
	leave, err := h.places.take(waiting, x.caller.Account, productOf(request))
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	result, err := h.do(ctx, account{namespace: x.caller.Account, version: x.version}, request)
	if created, ok := result.(qcloud.CreateTaskResult); ok {
		x.taskID = created.TaskID
	}
	return result, err
}

// productOf names the product whose store a call waits for; "" where it waits for none.
func productOf(request qcloud.Request) string {
	switch request := request.(type) {
	case *qcloud.GetDeviceShadow:
		return request.ProductID
	case *qcloud.UpdateDeviceShadow:
		return request.ProductID
	case *qcloud.Publish:
		return request.ProductID
	default:
		return ""
	}
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
	if x.replayed {
		fields = append(fields, "replayed", true)
	}
	if x.untold > 0 {
		fields = append(fields, "failuresNotLogged", x.untold)
	}
	if e := qcloud.AsError(err); err != nil && e.Kind == qcloud.KindSignatureFailure && e.Err != nil {
		fields = append(fields, "detail", e.Err.Error()) // for whoever looks after the Secrets
	}
	switch {
	case x.quiet:
		h.Log.V(1).Info("Call", append(fields, "detail", err.Error())...)
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
